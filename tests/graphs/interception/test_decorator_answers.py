"""What a `switchable`'s caller is given: values of the annotated type, errors as the code expects them, and what is
told of them."""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.tools import InjectedToolArg, StructuredTool, ToolException
from pydantic import ValidationError

from cm2_agent.errors import ToolError
from cm2_agent.graphs.backends.backends import Backends
from cm2_agent.graphs.interception.decorator import switchable
from cm2_agent.types.tool_calls import ToolAnswer, ToolRequest
from tests.fuzzing import examples
from tests.graphs.interception.node_tools import CALLED, Box, Order, fetch, find, look, simulated, within
from tests.graphs.interception.switched_app import Fault, Invents, Recorded


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLED.clear()


def test_real_calls_are_told_to_span_log_and_recorder() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.kept: list[tuple[ToolRequest, ToolAnswer, float]] = []

        def add(self, call: ToolRequest, answer: ToolAnswer, seconds: float) -> None:
            self.kept.append((call, answer, seconds))

    recorder: Any = Recorder()
    backends = Backends({"look": "record"}, recorder=recorder)

    async def work() -> Any:
        return look(7), await fetch(8), find.invoke({"key": 9})

    value, spans = within(work, backends)
    assert value == ("real 7", {"key": 8}, "found 9")
    assert CALLED == [(7, ""), 8, 9]
    assert [(span.name, span.backend) for span in spans] == [("look", "record"), ("fetch", "real"), ("find", "real")]
    assert [entry.answer.content for entry in backends.log.entries] == ["real 7", '{"key": 8}', "found 9"]
    assert [(call.arguments, answer.content) for call, answer, _ in recorder.kept] == [({"key": 7}, "real 7")]


def test_a_real_value_comes_through_as_the_object_it_is() -> None:
    held = {Box(1): "x"}

    @switchable
    def boxes(box: Box, due: date) -> list[Box]:
        "Boxes."
        assert (box, due) == (Box(3), date(2026, 5, 20))
        CALLED.append(box)
        return list(held)

    backends = Backends()
    value, (span,) = within(lambda: boxes(Box(3), date(2026, 5, 20)), backends)
    assert value[0] is next(iter(held))
    assert span.arguments == {"box": {"size": 3}, "due": "2026-05-20"}
    assert backends.log.entries[0].answer.content == '[{"size": 1}]'


def test_a_real_exception_comes_through_and_is_recorded_as_an_error() -> None:
    def work() -> Any:
        with pytest.raises(KeyError, match="no key -1"):
            look(-1)
        with pytest.raises(ToolException, match="no key -2"):
            find.invoke({"key": -2})

    backends = Backends()
    _, spans = within(work, backends)
    assert [bool(span.error) for span in spans] == [True, True]
    told = [(entry.answer.content, entry.answer.error) for entry in backends.log.entries]
    assert told == [("KeyError: 'no key -1'", True), ("no key -2", True)]
    assert backends.failure is None


def test_an_error_answer_raises_its_text() -> None:
    failed = ToolAnswer(content="no such key", error=True, backend="simulate")

    def work() -> Any:
        with pytest.raises(ToolException, match="no such key"):
            look(1)
        with pytest.raises(ToolException, match="no such key"):
            find.invoke({"key": 1})
        with pytest.raises(ToolException, match="no such key"):
            find.invoke({"name": "find", "args": {"key": 1}, "id": "c", "type": "tool_call"})

    backends = simulated(failed, failed, failed)
    _, spans = within(work, backends)
    assert ["no such key" in (span.error or "") for span in spans] == [True, True, True]
    assert [entry.answer.error for entry in backends.log.entries] == [True, True, True]
    assert backends.failure is None


def test_a_tool_that_handles_its_errors_is_told_them() -> None:
    handling = switchable(StructuredTool.from_function(find.tool.func, name="find", handle_tool_error=True))  # type: ignore[attr-defined]
    failed = ToolAnswer(content="no such key", error=True, backend="simulate")
    call: Any = {"name": "find", "args": {"key": 1}, "id": "c", "type": "tool_call"}
    (text, message), _ = within(lambda: (handling.invoke({"key": 1}), handling.invoke(call)), simulated(failed, failed))
    assert text == "no such key"
    assert (message.content, message.status, message.tool_call_id) == ("no such key", "error", "c")


def test_invalid_arguments_are_refused_before_anyone_is_asked() -> None:
    def work() -> Any:
        wrong: Any = "seven"
        with pytest.raises(ToolException, match="look was called with arguments that its schema does not allow"):
            look(wrong)
        with pytest.raises(ValidationError):
            find.invoke({"key": wrong})

    for backends in (simulated(), Backends()):
        _, spans = within(work, backends)
        assert all(span.error for span in spans)
        assert CALLED == []
        assert not isinstance(backends.simulator, Invents) or backends.simulator.asked == []


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (str, "7", "7"),
        (int, "7", 7),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (str | None, "null", None),
        (str | None, "7", "7"),
        (str | None, "shipped", "shipped"),
        (Any, '[1, "x"]', [1, "x"]),
        (Any, "shipped", "shipped"),
        (None, "null", None),
        (Order, '{"id": 7, "due": "2026-05-20"}', Order(id=7, due=date(2026, 5, 20))),
        (list[Box], '[{"size": 2}]', [Box(2)]),
        (date, '"2026-05-20"', date(2026, 5, 20)),
    ],
)
def test_an_answer_is_read_as_the_return_annotation_says(hint: Any, text: str, value: Any) -> None:
    def ask(key: int) -> Any:
        "Ask."
        return value

    ask.__annotations__["return"] = hint
    assert within(lambda: switchable(ask)(1), simulated(text))[0] == value
    backends = Backends()
    assert within(lambda: switchable(ask)(1), backends)[0] == value
    assert within(lambda: switchable(ask)(1), simulated(backends.log.entries[0].answer.content))[0] == value


leaves = st.none() | st.booleans() | st.integers() | st.text()


@settings(max_examples=examples(40))
@given(value=st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_a_real_call_recorded_is_what_its_replay_returns(value: Any) -> None:
    def ask(key: int) -> object:
        "Ask."
        return {"value": value}

    ask.__annotations__["return"] = dict
    backends = Backends()
    real, _ = within(lambda: switchable(ask)(1), backends)
    kept = backends.log.entries[0].answer.content
    assert json.loads(str(kept)) == real
    replayed = Backends("replay", replay=Recorded({1: str(kept)}))
    assert within(lambda: switchable(ask)(1), replayed)[0] == real == {"value": value}


def test_an_answer_of_another_type_is_the_simulators_failure() -> None:
    def work() -> Any:
        with pytest.raises(ToolError, match="not what its return annotation says"):
            typed(1)

    @switchable
    def typed(key: int) -> dict[str, int]:
        "Typed."
        raise AssertionError("a real tool was called")

    backends = simulated("it was shipped")
    within(work, backends)
    assert isinstance(backends.failure, ToolError)


def test_a_failed_simulator_is_noted() -> None:
    def work() -> Any:
        with pytest.raises(ToolError, match="timed out"):
            look(1)

    backends = simulated(ToolError("the simulator timed out"))
    within(work, backends)
    assert str(backends.failure) == "the simulator timed out"


def test_faults_reach_the_agents_code_as_errors_of_the_tool() -> None:
    @switchable
    def typed(key: int) -> dict[str, int]:
        "Typed."
        CALLED.append(key)
        return {"key": key}

    def work(expected: str) -> Any:
        with pytest.raises(ToolException, match=expected):
            typed(1)

    for chosen in (
        Backends(faults=Fault("timeout")),
        Backends("simulate", simulator=Invents(), faults=Fault("timeout")),
    ):
        _, (span,) = within(lambda: work("typed: timeout"), chosen)
        assert span.fault == "timeout"
        assert chosen.failure is None
    assert CALLED == []
    _, (span,) = within(lambda: work("not what its return annotation says"), chosen := Backends(faults=Fault("empty")))
    assert (span.fault, CALLED, chosen.failure) == ("empty", [1], None)
    assert within(lambda: look(1), Backends(faults=Fault("empty")))[0] == ""


def test_what_the_model_does_not_give_is_no_argument_of_the_call() -> None:
    @switchable
    def handle(key: int, desk: Annotated[object, InjectedToolArg]) -> str:
        "Handle."
        CALLED.append((key, desk))
        return "handled"

    desk = object()
    backends = simulated("invented")
    assert within(lambda: handle(1, desk), backends)[0] == "invented"
    assert backends.log.entries[0].request.arguments == {"key": 1}
    assert within(lambda: handle(1, desk=desk), Backends())[0] == "handled"
    ((key, held),) = CALLED
    assert (key, held) == (1, desk)
