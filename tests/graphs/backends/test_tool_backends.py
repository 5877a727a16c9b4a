"""Backends as objects: which names they bear, what they may return and raise, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tools import ToolException

from cm2_agent import RecordedCall, Task
from cm2_agent.errors import ToolError
from cm2_agent.graphs import CallLog, Hybrid, Real, Record, Replay, Simulate, ToolAnswer, ToolRequest
from cm2_agent.graphs.backends.backends import Backends
from cm2_agent.graphs.backends.record import CallRecorder
from cm2_agent.graphs.backends.tool_backends import is_real, resolved
from cm2_agent.types.messages import ToolSpec

GET = ToolSpec(name="get_order", parameters={"properties": {"id": {"type": "integer"}}})
RECORDED = (RecordedCall(name="get_order", arguments={"id": 7}, result="shipped"),)
TASK = Task(id="t", turns=("x",), recorded=RECORDED)


def get(number: int, task: Task | None = TASK) -> ToolRequest:
    return ToolRequest(tool=GET, arguments={"id": number}, task=task)


class Shop:
    """Answers with what it is given, or raises it."""

    name, version = "shop", "3"

    def __init__(self, given: Any = "shipped") -> None:
        self.given = given
        self.asked: list[tuple[ToolRequest, CallLog]] = []

    async def answer(self, request: ToolRequest, log: CallLog) -> Any:
        self.asked.append((request, log))
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


async def pending(request: ToolRequest) -> Any:
    return {"id": request.arguments["id"], "status": "pending"}


def counted(request: ToolRequest, log: CallLog) -> str:
    return f"answer {len(log.entries)}"


@pytest.mark.parametrize(
    ("choice", "name", "label"),
    [
        (Real(), "real", "real"),
        (Replay(), "replay", "replay"),
        (Simulate("test"), "simulate", "simulate"),
        (Hybrid(Replay(), Simulate("test")), "hybrid", "hybrid"),
        (Hybrid(Replay(), Shop()), "hybrid", "hybrid:shop:3"),
        (Shop(), "shop", "shop:3"),
        (pending, "pending", "pending"),
    ],
)
def test_a_backend_is_known_by_its_name_and_version(choice: Any, name: str, label: str) -> None:
    assert (resolved(choice).name, resolved(choice).label) == (name, label)
    assert Backends({"get_order": choice}).backend("get_order") == name


@pytest.mark.parametrize(
    ("given", "content"),
    [
        ("shipped", "shipped"),
        ({"status": "shipped"}, '{"status": "shipped"}'),
        ([{"type": "text", "text": "shipped"}], [{"type": "text", "text": "shipped"}]),
        (None, "null"),
        (ToolAnswer(content="shipped", backend="somebody"), "shipped"),
    ],
)
async def test_what_a_backend_returns_is_the_answer_under_its_name(given: Any, content: Any) -> None:
    shop = Shop(given)
    backends = Backends(shop, task=TASK)
    assert await backends.answer(get(7)) == ToolAnswer(content=content, backend="shop")
    assert shop.asked == [(get(7), backends.log)]
    assert backends.log.entries[0].answer.backend == "shop"
    assert backends.failure is None


async def test_functions_are_asked_with_a_request_or_with_the_log_too() -> None:
    backends = Backends({"get_order": pending})
    assert (await backends.answer(get(1))).content == '{"id": 1, "status": "pending"}'
    backends = Backends(counted)
    assert [(await backends.answer(get(number))).content for number in (1, 2)] == ["answer 0", "answer 1"]


async def test_a_tool_exception_is_the_tools_failure_and_all_else_the_dialogues() -> None:
    backends = Backends(Shop(ToolException("no order 7")))
    assert await backends.answer(get(7)) == ToolAnswer(content="no order 7", error=True, backend="shop")
    assert backends.failure is None
    for error, message in (
        (KeyError("orders"), "the backend 'shop' of tool 'get_order' failed: KeyError: 'orders'"),
        (ToolError("the shop is closed"), "the shop is closed"),
    ):
        backends = Backends(Shop(error))
        with pytest.raises(ToolError) as raised:
            await backends.answer(get(7))
        assert str(raised.value) == message
        assert backends.failure is raised.value
        assert not backends.log.entries
    with pytest.raises(ToolError, match="not JSON"):
        await Backends(Shop({1, 2})).answer(get(7))


async def test_hybrid_names_who_answered() -> None:
    shop = Shop("pending")
    backends = Backends(Hybrid(Replay(), shop), task=TASK)
    assert await backends.answer(get(7)) == ToolAnswer(content="shipped", backend="replay")
    assert await backends.answer(get(8)) == ToolAnswer(content="pending", backend="shop")
    assert [request.arguments["id"] for request, _ in shop.asked] == [8]


async def test_replay_answers_each_task_from_its_own_recording_and_the_one_it_was_given() -> None:
    other = Task(id="o", turns=("x",), recorded=(RecordedCall(name="get_order", arguments={"id": 7}, result="lost"),))
    replay = Replay([RecordedCall(name="get_order", arguments={"id": 9}, result="new")])
    for request, content in ((get(7), "shipped"), (get(7, other), "lost"), (get(9), "new"), (get(9, None), "new")):
        assert (await replay.answer(request, CallLog())).content == content
    assert replay.find(get(7, None), CallLog()) is None


async def test_simulate_makes_one_simulator_for_each_task() -> None:
    made: list[str] = []

    def simulator(task: Task) -> Shop:
        made.append(task.id)
        return Shop(f"of {task.id}")

    simulate = Simulate(simulator)
    for task in (TASK, Task(id="o", turns=("x",)), TASK):
        answer = await Backends(simulate, task=task).answer(get(1, task))
        assert answer == ToolAnswer(content=f"of {task.id}", backend="simulate")
    assert made == ["t", "o"]
    with pytest.raises(ToolError, match="without a task"):
        await simulate.answer(get(1, None), CallLog())
    with pytest.raises(ToolError, match="the simulator is a int; expected a model, its name, or a function of a task"):
        Simulate(3)  # type: ignore[arg-type]
    assert [Simulate("test", seed=own).with_defaults(seed=5, cache=None).seed for own in (None, 0)] == [5, 0]


def test_a_recorder_is_that_of_its_backend(tmp_path: Any) -> None:
    with CallRecorder(tmp_path / "calls.jsonl") as recorder:
        assert resolved(Record(recorder)).recorder is recorder
        assert (resolved(Record(recorder)).label, resolved(Record(recorder)).ask) == ("record", None)
        assert is_real({"get_order": Record(recorder)}, "get_order")
    assert is_real({"get_order": Replay()}, "refund")
    assert not is_real(Replay(), "refund")


class Imposter:
    name = "replay"

    async def answer(self, request: ToolRequest, log: CallLog) -> str:
        return "x"


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        (3, "names the backend 3; expected one of real"),
        ({"get_order": None}, "names the backend None"),
        ({"get_order": "simulated"}, "names the backend 'simulated'"),
        (Replay, "the class Replay is no tool backend"),
        (object(), "is no tool backend; expected"),
        (lambda request: "x", "a lambda, which has no name; write a function or a class"),
        (Imposter(), "a tool backend, Imposter, is named 'replay', which is a name of cm2's own; choose another"),
    ],
)
def test_what_is_no_backend_is_refused(choice: Any, complaint: str) -> None:
    with pytest.raises(ToolError, match=complaint):
        Backends(choice)


@pytest.mark.parametrize("first", [Shop(), "replay", Replay])
def test_hybrid_needs_a_backend_that_knows_what_it_can_answer(first: Any) -> None:
    with pytest.raises(
        ToolError, match=r"the first backend of Hybrid is .*; expected Replay\(recording\), or a backend"
    ):
        Hybrid(first, Shop())
