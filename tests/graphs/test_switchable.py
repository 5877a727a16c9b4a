"""`switchable`: tools that plain function nodes call, outside a run as they are, inside it as the run's backends say."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, ToolException, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode
from langgraph.types import Command, interrupt
from pydantic import BaseModel, ValidationError

from cm2_agent.errors import ToolError
from cm2_agent.graphs.tools import TOOLS, Answer, Backends, Call, RealToolGuard, refuse_unnamed, switched, tools_of, unseen_tools
from cm2_agent.graphs.tools.seeing import look_over
from cm2_agent.graphs.tools.switchable import switchable
from cm2_agent.recorder import capture
from cm2_agent.trace import Run, ToolRun
from tests.graphs.test_switch import Fault, Invents, Recorded, driven, says
from tests.graphs.test_switch import app as with_tools

CALLED: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLED.clear()


@dataclass(frozen=True)
class Box:
    """Not JSON by itself."""

    size: int


class Order(BaseModel):
    id: int
    due: date | None = None


@switchable
def look(key: int, note: str = "") -> str:
    """Look a key up."""
    CALLED.append((key, note))
    if key < 0:
        raise KeyError(f"no key {key}")
    return f"real {key}"


@switchable
async def fetch(key: int) -> dict[str, int]:
    """Fetch a key."""
    CALLED.append(key)
    return {"key": key}


@switchable
@tool
def find(key: int) -> str:
    """Find a key."""
    CALLED.append(key)
    if key < 0:
        raise ToolException(f"no key {key}")
    return f"found {key}"


@switchable
@tool
async def afind(key: int) -> dict[str, int]:
    """Find a key."""
    CALLED.append(key)
    return {"key": key}


def within(work: Callable[[], Any], backends: Backends | None, *handlers: Any, context: Any = None) -> tuple[Any, list[ToolRun]]:
    """What the work gives inside a plain function node of a run, and the tools' spans."""
    given: list[Any] = []
    runs: list[Run] = []

    def node(state: MessagesState) -> dict[str, Any]:
        given.append(work())
        return {}

    async def anode(state: MessagesState) -> dict[str, Any]:
        given.append(await work())
        return {}

    awaits = inspect.iscoroutinefunction(work)
    built: Any = StateGraph(MessagesState, context_schema=None if context is None else dict)
    built.add_node("work", anode if awaits else node)
    app = built.add_edge(START, "work").compile()
    configurable = {} if backends is None else {TOOLS: backends}
    config: Any = {"configurable": configurable, "callbacks": [capture(runs.append), *handlers]}
    asked: Any = {"messages": [HumanMessage("go")]}
    if awaits:
        asyncio.run(app.ainvoke(asked, config, context=context))
    else:
        app.invoke(asked, config, context=context)
    return given[0], list(runs[0].tools)


def simulated(*answers: Any) -> Backends:
    return Backends("simulate", simulator=Invents(*answers))


def test_outside_a_run_it_is_what_it_wraps() -> None:
    assert (look(3), look(key=4, note="n")) == ("real 3", "real 4")
    assert CALLED == [(3, ""), (4, "n")]
    assert str(inspect.signature(look)) == "(key: 'int', note: 'str' = '') -> 'str'"
    assert (look.__name__, look.__doc__) == ("look", "Look a key up.")
    assert asyncio.run(fetch(5)) == {"key": 5}
    assert inspect.iscoroutinefunction(fetch)
    with pytest.raises(KeyError, match="no key -1"):
        look(-1)
    with pytest.raises(TypeError, match="nothing"):
        look(1, nothing=2)  # type: ignore[call-arg]


def test_a_tool_stays_a_tool() -> None:
    plain = StructuredTool.from_function(find.tool.func)  # type: ignore[attr-defined]
    assert isinstance(find, BaseTool)
    assert convert_to_openai_tool(find) == convert_to_openai_tool(plain)
    assert find.invoke({"key": 1}) == find.run({"key": 1}) == "found 1"
    call: Any = {"name": "find", "args": {"key": 1}, "id": "c", "type": "tool_call"}
    assert find.invoke(call) == ToolMessage(content="found 1", name="find", tool_call_id="c")
    assert asyncio.run(afind.ainvoke({"key": 2})) == asyncio.run(afind.arun({"key": 2})) == {"key": 2}
    with pytest.raises(ToolException, match="no key -1"):
        find.invoke({"key": -1})
    with pytest.raises(ValidationError):
        find.invoke({"key": "x"})
    assert switchable(find) is find
    assert switchable(look) is look


def test_a_run_without_backends_is_outside_too() -> None:
    assert within(lambda: (look(1), find.invoke({"key": 1})), None)[0] == ("real 1", "found 1")


def test_a_functions_answer_is_the_backends() -> None:
    backends = simulated("invented")
    value, (span,) = within(lambda: look(7, note="n"), backends)
    assert (value, CALLED) == ("invented", [])
    assert (span.name, span.arguments, span.result, span.backend) == ("look", {"key": 7, "note": "n"}, "invented", "simulate")
    assert [(entry.call.arguments, entry.answer.content) for entry in backends.journal.entries] == [({"key": 7, "note": "n"}, "invented")]
    assert [message.text for message in backends.simulator.asked[0].messages] == ["go"]  # type: ignore[union-attr]


def test_an_async_function_is_awaited_and_its_answer_read_as_its_annotation() -> None:
    async def work() -> Any:
        return await fetch(7)

    value, (span,) = within(work, simulated('{"key": 9}'))
    assert (value, span.backend, CALLED) == ({"key": 9}, "simulate", [])


def test_a_sync_function_in_an_async_node() -> None:
    async def work() -> Any:
        return look(7)

    assert within(work, simulated("invented"))[0] == "invented"


def test_a_tools_answer_is_the_backends() -> None:
    call: Any = {"name": "find", "args": {"key": 7}, "id": "c9", "type": "tool_call"}
    (plain, message), spans = within(lambda: (find.invoke({"key": 7}), find.invoke(call)), simulated("one", "two"))
    assert (plain, message.content, message.tool_call_id, message.name) == ("one", "two", "c9", "find")
    assert [(span.call_id, span.backend, span.result) for span in spans] == [(None, "simulate", "one"), ("c9", "simulate", "two")]
    assert CALLED == []

    async def work() -> Any:
        return await afind.ainvoke({"key": 1}), await afind.arun({"key": 1})

    assert within(work, simulated('{"key": 5}', '{"key": 6}'))[0] == ({"key": 5}, {"key": 6})


def test_real_calls_are_told_to_span_journal_and_recorder() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.kept: list[tuple[Call, Answer, float]] = []

        def add(self, call: Call, answer: Answer, seconds: float) -> None:
            self.kept.append((call, answer, seconds))

    recorder = Recorder()
    backends = Backends({"look": "record"}, recorder=recorder)

    async def work() -> Any:
        return look(7), await fetch(8), find.invoke({"key": 9})

    value, spans = within(work, backends)
    assert value == ("real 7", {"key": 8}, "found 9")
    assert CALLED == [(7, ""), 8, 9]
    assert [(span.name, span.backend) for span in spans] == [("look", "record"), ("fetch", "real"), ("find", "real")]
    assert [entry.answer.content for entry in backends.journal.entries] == ["real 7", '{"key": 8}', "found 9"]
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
    assert backends.journal.entries[0].answer.content == '[{"size": 1}]'


def test_a_real_exception_comes_through_and_is_recorded_as_an_error() -> None:
    def work() -> Any:
        with pytest.raises(KeyError, match="no key -1"):
            look(-1)
        with pytest.raises(ToolException, match="no key -2"):
            find.invoke({"key": -2})

    backends = Backends()
    _, spans = within(work, backends)
    assert [bool(span.error) for span in spans] == [True, True]
    told = [(entry.answer.content, entry.answer.error) for entry in backends.journal.entries]
    assert told == [("KeyError: 'no key -1'", True), ("no key -2", True)]
    assert backends.failure is None


def test_an_error_answer_raises_its_text() -> None:
    failed = Answer(content="no such key", error=True, backend="simulate")

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
    assert [entry.answer.error for entry in backends.journal.entries] == [True, True, True]
    assert backends.failure is None


def test_a_tool_that_handles_its_errors_is_told_them() -> None:
    handling = switchable(StructuredTool.from_function(find.tool.func, name="find", handle_tool_error=True))  # type: ignore[attr-defined]
    failed = Answer(content="no such key", error=True, backend="simulate")
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


@pytest.mark.parametrize(("hint", "text", "value"), [
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
])  # fmt: skip
def test_an_answer_is_read_as_the_return_annotation_says(hint: Any, text: str, value: Any) -> None:
    def ask(key: int) -> Any:
        "Ask."
        return value

    ask.__annotations__["return"] = hint
    assert within(lambda: switchable(ask)(1), simulated(text))[0] == value
    backends = Backends()
    assert within(lambda: switchable(ask)(1), backends)[0] == value
    assert within(lambda: switchable(ask)(1), simulated(backends.journal.entries[0].answer.content))[0] == value


leaves = st.none() | st.booleans() | st.integers() | st.text()


@settings(max_examples=40, deadline=None)
@given(value=st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_a_real_call_recorded_is_what_its_replay_returns(value: Any) -> None:
    def ask(key: int) -> object:
        "Ask."
        return {"value": value}

    ask.__annotations__["return"] = dict
    backends = Backends()
    real, _ = within(lambda: switchable(ask)(1), backends)
    kept = backends.journal.entries[0].answer.content
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

    for chosen in (Backends(faults=Fault("timeout")), Backends("simulate", simulator=Invents(), faults=Fault("timeout"))):
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
    assert backends.journal.entries[0].call.arguments == {"key": 1}
    assert within(lambda: handle(1, desk=desk), Backends())[0] == "handled"
    ((key, held),) = CALLED
    assert (key, held) == (1, desk)


def test_a_real_tool_is_called_only_where_it_is_named() -> None:
    def work() -> Any:
        for use in (lambda: look(1), lambda: find.invoke({"key": 1})):
            with pytest.raises(ToolError, match="was not called"):
                use()

    guard = RealToolGuard([])
    within(work, Backends(), guard)
    assert (CALLED, guard.stopped) == ([], {"look", "find"})
    assert within(lambda: (look(1), find.invoke({"key": 1})), Backends(), RealToolGuard(["look", "find"]))[0] == ("real 1", "found 1")
    assert within(lambda: (look(1), find.invoke({"key": 1})), simulated("a", "b"), RealToolGuard([]))[0] == ("a", "b")


def test_backends_in_the_runtime_context() -> None:
    assert within(lambda: look(1), None, context={TOOLS: simulated("invented")})[0] == "invented"


def test_an_interrupt_inside_a_real_tool_is_an_interrupt() -> None:
    @switchable
    def ask(question: str) -> str:
        "Ask a human."
        return f"human said {interrupt(question)}"

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(ask("Really?"))]}

    app = StateGraph(MessagesState).add_node("work", node).add_edge(START, "work").compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t", TOOLS: Backends()}}
    assert app.invoke({"messages": [HumanMessage("go")]}, config)["__interrupt__"][0].value == "Really?"
    assert app.invoke(Command(resume="yes"), config)["messages"][-1].content == "human said yes"


def test_in_a_tool_node_the_nodes_own_switch_decides() -> None:
    script = [says(("find", {"key": 1}), ("afind", {"key": 2}))]
    graph = with_tools(*script, tools=(find, afind))
    told, _ = asyncio.run(driven(graph, None))
    assert [message.content for message in told] == ["found 1", '{"key": 2}']
    backends = simulated("a", "b")
    for app in (switched(graph), graph):  # the tools switch themselves where the node does not
        backends = simulated("a", "b")
        told, (run,) = asyncio.run(driven(app, backends))
        assert [message.content for message in told] == ["a", "b"]
        assert [span.backend for span in run.tools] == ["simulate", "simulate"]
        assert len(backends.journal.entries) == 2
    real = Backends()
    told, (run,) = asyncio.run(driven(switched(graph), real))
    assert [message.content for message in told] == ["found 1", '{"key": 2}']
    assert [span.backend for span in run.tools] == ["real", "real"]
    assert len(real.journal.entries) == 2
    assert look_over(graph).switchable == ("afind", "find")


def test_a_thread_of_the_nodes_own_needs_the_context() -> None:
    def work() -> Any:
        given: list[str] = []
        for target in (lambda: given.append(look(1)), functools.partial(contextvars.copy_context().run, lambda: given.append(look(2)))):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return given

    assert within(work, simulated("invented"))[0] == ["real 1", "invented"]


def test_it_is_seen_and_its_real_use_must_be_named() -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [look(1), find.invoke({"key": 1})]}

    graph = StateGraph(MessagesState).add_node("work", node).add_edge(START, "work").compile()
    assert unseen_tools(graph) == {}
    assert sorted(tools_of(graph)) == ["find", "look"]
    assert look_over(graph).nodes == {"find": "work", "look": "work"}
    with pytest.raises(ToolError, match="--allow-real find --allow-real look"):
        refuse_unnamed(graph, [])
    assert sorted(refuse_unnamed(graph, ["look"], {"find": "simulate"})) == ["find", "look"]


def test_what_has_no_schema_is_refused() -> None:
    class Desk:
        def look(self, key: int) -> str:
            "Look."
            return ""

    def star(*keys: int) -> str:
        "Star."
        return ""

    def silent(key: int):  # type: ignore[no-untyped-def]
        "Silent."

    def opaque(lock: threading.Event) -> str:
        "Opaque."
        return ""

    def stream(key: int) -> Any:
        "Stream."
        yield key

    wrongs = (
        (Desk.look, "is a method"), (star, "keys"), (silent, "what it returns"), (opaque, "'opaque'"), (stream, "generator"), (7, "int")
    )  # fmt: skip
    for wrong, told in wrongs:
        with pytest.raises(ToolError, match=told):
            switchable(wrong)


def test_a_tool_node_still_injects_what_it_injects() -> None:
    @switchable
    @tool
    def count(key: int, state: Annotated[dict[str, Any], InjectedState]) -> str:
        "Count."
        return f"{key} of {len(state['messages'])}"

    asked = AIMessage("", tool_calls=[{"name": "count", "args": {"key": 1}, "id": "c", "type": "tool_call"}])
    graph = StateGraph(MessagesState).add_node("tools", ToolNode([count])).add_edge(START, "tools").compile()
    assert graph.invoke({"messages": [asked]})["messages"][-1].content == "1 of 1"
    config: Any = {"configurable": {TOOLS: simulated("many")}}
    assert switched(graph).invoke({"messages": [asked]}, config)["messages"][-1].content == "many"


def test_production_imports_nothing_heavy() -> None:
    heavy = ("accelerate", "datasets", "matplotlib", "mcp", "pydantic_ai", "scipy", "sqlalchemy", "torch", "transformers", "trl")
    code = f"import sys; from cm2_agent.graphs.tools import switchable; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
