"""What became of each call of a watched agent: tools that fail, that end the run, that never run or do not exist."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, InvalidToolCall
from langchain_core.messages import ToolCall as LangChainCall
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from cm2_agent.rewards.scoring.checks import resolve
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.tracing.apps import ScriptedModel
from tests.tracing.conftest import Watched

CONFIG: Any = {"configurable": {"thread_id": "T"}}


@tool
def cancel(order_id: int) -> str:
    """Cancel an order."""
    if order_id == 13:
        raise RuntimeError("the desk is down")
    return f"cancelled {order_id}"


def asks(*calls: tuple[str, dict[str, Any]]) -> AIMessage:
    return AIMessage("", tool_calls=[LangChainCall(name=name, args=given, id=name) for name, given in calls])


def agent(watched: Watched, *script: AIMessage, **options: Any) -> Any:
    model = ScriptedModel(script=list(script))
    graph = create_agent(model, [cancel], checkpointer=InMemorySaver(), **options)
    return graph.with_config(callbacks=[watched.handler])


def statuses(watched: Watched) -> list[str]:
    found = Trace(id="T", runs=tuple(watched.runs))
    return [use.status for step in found.steps for use in step.tool_uses]


def test_a_tool_that_ended_the_run_has_failed(watched: Watched) -> None:
    graph = agent(watched, asks(("cancel", {"order_id": 13})), AIMessage("Done."))
    with contextlib.suppress(RuntimeError):
        graph.invoke({"messages": [("user", "Cancel 13")]}, CONFIG)
    assert statuses(watched) == ["failed"]
    view = View.of(Trace.of(watched.run), turn=0)
    assert not resolve({"no_tool_error": True})(view)
    assert not resolve({"no_tool_error": "cancel"})(view)
    assert view.all_calls[0].error is not None
    assert "the desk is down" in view.all_calls[0].error
    assert view.all_calls[0].failed


def test_a_name_that_no_tool_has_is_invalid(watched: Watched) -> None:
    graph = agent(watched, asks(("cancel_all", {}), ("cancel", {"order_id": 1})), AIMessage("Done."))
    graph.invoke({"messages": [("user", "Cancel all")]}, CONFIG)
    assert statuses(watched) == ["invalid", "ok"]


def test_arguments_that_are_no_json_are_invalid(watched: Watched) -> None:
    broken = InvalidToolCall(name="cancel", args=None, id="1", error=None, type="invalid_tool_call")
    graph = agent(watched, AIMessage("I try.", invalid_tool_calls=[broken]))
    graph.invoke({"messages": [("user", "Cancel 1")]}, CONFIG)
    assert statuses(watched) == ["invalid"]


@pytest.mark.parametrize(
    ("decision", "status"), [("reject", "not_run"), ("approve", "ok"), (None, "not_run"), ("edit", "ok")]
)
def test_a_call_that_waits_for_a_person(watched: Watched, decision: str | None, status: str) -> None:
    ask = HumanInTheLoopMiddleware(interrupt_on={"cancel": True})
    graph = agent(watched, asks(("cancel", {"order_id": 1})), AIMessage("Done."), middleware=[ask])
    graph.invoke({"messages": [("user", "Cancel 1")]}, CONFIG)
    if decision is not None:
        answer: dict[str, Any] = {"type": decision}
        if decision == "edit":
            answer["edited_action"] = {"name": "cancel", "args": {"order_id": 2}}
        graph.invoke(Command(resume={"decisions": [answer]}), CONFIG)
    assert statuses(watched) == [status]
    if decision == "edit":
        (call,) = View.of(Trace(id="T", runs=tuple(watched.runs))).all_calls
        assert call.arguments == {"order_id": 2}
