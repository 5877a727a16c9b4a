"""Runs whose tools are answered by backend objects: what the trace says, what is refused, and which rollouts are
compared."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from cm2_agent import Checklist, Item, RecordedCall, SQLStore, Task, run
from cm2_agent.errors import ToolError
from cm2_agent.graphs import CallLog, Hybrid, Real, Replay, Simulate, ToolRequest, agent
from cm2_agent.types.group import group_key
from cm2_agent.types.run_attributes import CRASH, CUT, SIMULATOR, TOOL_BACKENDS
from tests.tracing.apps import ScriptedModel

CHECKLIST = Checklist(Item("looks_up", check={"called": "get_order"}), name="shop")
RECORDED = (RecordedCall(name="get_order", arguments={"order_id": 7}, result="shipped"),)
TASK = Task(id="t", turns=("Where is order 7?",), recorded=RECORDED)
CALLED: list[str] = []


@tool
def get_order(order_id: int) -> str:
    """Look an order up."""
    CALLED.append("get_order")
    return "real"


@tool
def refund(order_id: int) -> str:
    """Refund an order."""
    CALLED.append("refund")
    return "real"


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    CALLED.clear()


class Shop:
    name = "shop"

    def __init__(self, version: str = "1", raises: Exception | None = None) -> None:
        self.version, self.raises = version, raises
        self.asked: list[ToolRequest] = []

    async def answer(self, request: ToolRequest, log: CallLog) -> Any:
        self.asked.append(request)
        if self.raises is not None:
            raise self.raises
        return {"tool": request.tool.name, "answers": len(log.entries)}


def graph() -> Any:
    calls = [
        AIMessage("", tool_calls=[{"name": name, "args": {"order_id": 7}, "id": name, "type": "tool_call"}])
        for name in ("get_order", "refund")
    ]
    return agent(ScriptedModel(script=[*calls, AIMessage("done")], per_turn=True), [get_order, refund])


async def rollouts(tools: Any, **options: Any) -> list[Any]:
    return [one async for one in run(graph(), [TASK], checklist=CHECKLIST, tools=tools, **options)]


async def test_each_tool_is_answered_by_its_own_backend() -> None:
    shop = Shop()
    ((trace, score),) = await rollouts({"get_order": Replay(), "refund": shop})
    assert [(call.name, call.result, call.backend) for call in trace.runs[0].tools] == [
        ("get_order", "shipped", "replay"),
        ("refund", '{"tool": "refund", "answers": 1}', "shop"),
    ]
    assert json.loads(trace.attributes[TOOL_BACKENDS]) == {"get_order": "replay", "refund": "shop:1"}
    assert SIMULATOR not in trace.attributes
    assert (shop.asked[0].task, score.reward, CALLED) == (TASK, 1.0, [])
    assert shop.asked[0].messages[0].text == "Where is order 7?"


async def test_objects_and_short_forms_leave_the_same_trace() -> None:
    def simulator(task: Task) -> Shop:
        return Shop(f"simulator of {task.id}")

    for short, backend in (
        ("hybrid", Hybrid(Replay(), Simulate(simulator))),
        ({"get_order": "replay", "refund": "simulate"}, {"get_order": Replay(), "refund": Simulate(simulator)}),
        ({"get_order": "real", "refund": "simulate"}, {"get_order": Real(), "refund": Simulate(simulator)}),
    ):
        allowed = ["get_order"] if isinstance(short, dict) and short["get_order"] == "real" else []
        ((one, _),) = await rollouts(short, simulator=simulator, allow_real=allowed)
        ((other, _),) = await rollouts(backend, allow_real=allowed)
        for name in (TOOL_BACKENDS, SIMULATOR):
            assert one.attributes[name] == other.attributes[name]
        assert [call.backend for call in one.runs[0].tools] == [call.backend for call in other.runs[0].tools]


async def test_the_simulators_of_several_tools_are_named_by_tool() -> None:
    tools = {"get_order": Simulate(lambda task: Shop("a")), "refund": Simulate(lambda task: Shop("b"))}
    ((trace, _),) = await rollouts(tools)
    assert json.loads(trace.attributes[SIMULATOR]) == {"get_order": "a", "refund": "b"}


async def test_rollouts_of_different_backends_or_versions_are_never_compared() -> None:
    async def shop(request: ToolRequest) -> str:
        return "x"

    keys = set()
    for backend in (Shop("1"), Shop("2"), shop):
        ((trace, score),) = await rollouts(backend, name="one")
        keys.add(json.dumps(group_key(trace, score.reward_version)))
    assert len(keys) == 3


@pytest.mark.parametrize("error", [ConnectionError("away"), TimeoutError("slow"), ToolError("no answer")])
async def test_a_backend_that_breaks_costs_its_dialogue_the_reward(error: Exception) -> None:
    shop = Shop(raises=error)
    ((trace, score),) = await rollouts(shop)
    assert (trace.failure.kind, score.reward, score.pending) == ("ToolError", None, True)
    assert len(shop.asked) == 1, "what is away is not asked again"


async def test_a_call_that_a_backend_cannot_bear_is_the_calls_doing() -> None:
    shop = Shop(raises=KeyError("orders"))
    ((trace, score),) = await rollouts(shop)
    assert "the backend 'shop' of tool 'get_order' failed: KeyError" in trace.failure.message
    assert (len(shop.asked), trace.attributes[CUT], score.null_reason) == (2, CRASH, None)
    assert score.lower == score.upper == score.reward


async def test_a_call_that_was_not_recorded_cuts_its_turn() -> None:
    """Else a policy that asks for what nobody recorded would never be told that it was wrong."""
    ((trace, score),) = await rollouts(Replay())
    assert "refund" in trace.failure.message
    assert (trace.attributes[CUT], score.null_reason, score.pending) == (CRASH, None, False)


async def test_a_tool_without_a_backend_is_real_and_must_be_allowed() -> None:
    with pytest.raises(ToolError, match="real tools that are not named: refund"):
        run(graph(), [TASK], tools={"get_order": Shop()})
    with pytest.raises(ToolError, match="real tools that are not named: get_order"):
        run(graph(), [TASK], tools={"get_order": Real(), "refund": Shop()})
    with pytest.raises(ToolError, match="names cancel, but the graph's tools are get_order, refund"):
        run(graph(), [TASK], tools={"get_order": Shop(), "refund": Shop(), "cancel": Shop()})
    await rollouts({"get_order": Shop()}, allow_real=["refund"])
    assert CALLED == ["refund"]


async def test_a_stored_run_goes_on_with_a_backend_of_ones_own(tmp_path: Any) -> None:
    with SQLStore(f"sqlite:///{tmp_path / 'runs.db'}") as store:
        for _ in range(2):
            shop = Shop()
            ((trace, _),) = await rollouts(shop, store=store, name="named")
            assert [call.backend for call in trace.runs[0].tools] == ["shop", "shop"]
        assert not shop.asked  # it was stored the first time
