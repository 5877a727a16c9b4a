"""How a run ends other than by its last answer: interrupts, errors, closed streams, cancellation and limits."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.types import Command

from cm2_agent.types.trace import Trace
from tests.tracing.apps import asks, calls
from tests.tracing.conftest import Watched
from tests.tracing.ordinary_run import CHAT, LOOK, QUESTION, ROLES, ROOT, app, roles


async def test_interrupt_and_resume(watched: Watched) -> None:
    graph = app(watched, [calls(1), asks("may I?"), AIMessage(content="done")], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "T"}}
    await graph.ainvoke(QUESTION, config)
    assert watched.tree() == [[ROOT, CHAT, LOOK, CHAT, ["execute_tool ask_human"]]]
    first = watched.run
    assert (first.status, first.failure, first.thread) == ("interrupted", None, "T")
    assert roles(first) == ["system", "user", "assistant", "tool", "assistant"]
    assert [(tool_run.name, tool_run.error, tool_run.result) for tool_run in first.tools] == [
        ("look", None, "value 1"),
        ("ask_human", None, None),
    ]
    watched.exporter.clear()

    await graph.ainvoke(Command(resume="yes"), config)
    assert watched.tree() == [[ROOT, ["execute_tool ask_human"], CHAT]]
    second = watched.runs[1]
    assert (second.status, second.thread) == ("ok", "T")
    assert roles(second) == ["tool", "assistant"]
    assert [call.message for call in second.calls] == [1]

    trace = Trace(id="T", runs=(first, second))
    assert [len(turn.steps) for turn in trace.turns] == [3]
    assert trace.steps[1].responses[0].response == "human said yes"
    assert [step.call is not None for step in trace.steps] == [True] * 3


def test_a_resumed_node_starts_again(watched: Watched) -> None:
    """Tools of one message in one node: what had answered before the interrupt runs and is recorded again, and stands
    in the dialogue once."""
    script = [
        AIMessage(content="", tool_calls=[*calls(1).tool_calls, *asks("may I?").tool_calls]),
        AIMessage(content="done"),
    ]
    graph = app(watched, script, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "T"}}
    graph.invoke(QUESTION, config)
    graph.invoke(Command(resume="yes"), config)
    first, second = watched.runs
    assert (first.status, second.status) == ("interrupted", "ok")
    assert [run_.name for run in (first, second) for run_ in run.tools].count("look") == 2
    trace = Trace(id="T", runs=(first, second))
    assert [response.id for response in trace.steps[0].responses] == ["call1", "ask"]
    assert [message.role for message in trace.messages] == ROLES


def test_a_static_interrupt(watched: Watched) -> None:
    graph = app(watched, checkpointer=InMemorySaver(), interrupt_after=["tools"])
    config = {"configurable": {"thread_id": "T"}}
    graph.invoke(QUESTION, config)
    graph.invoke(None, config)
    assert [run.status for run in watched.runs] == ["interrupted", "ok"]
    assert [message.role for run in watched.runs for message in run.messages] == ROLES


@pytest.mark.parametrize("handled", [True, False])
def test_tool_errors(watched: Watched, handled: bool) -> None:
    graph = app(watched, [calls(1), calls(-2), AIMessage(content="sorry")], handle_errors=handled)
    with contextlib.nullcontext() if handled else pytest.raises(ValueError, match="no key -2"):
        graph.invoke(QUESTION)
    assert watched.tree() == [[ROOT, CHAT, LOOK, CHAT, LOOK, *([CHAT] if handled else [])]]
    run = watched.run
    assert [tool_run.error for tool_run in run.tools] == [None, "ValueError: no key -2"]
    if handled:
        assert run.status == "ok"
        response = run.messages[5].responses[0]
        assert response.error
        assert "no key -2" in response.response
    else:
        assert run.status == "error"
        assert run.failure is not None
        assert (run.failure.kind, run.failure.message) == ("ToolError", "ValueError: no key -2")
        assert roles(run) == ["system", "user", "assistant", "tool", "assistant"]


def test_early_closed_stream(watched: Watched) -> None:
    stream = app(watched).stream(QUESTION)
    next(stream)
    stream.close()
    assert watched.tree() == [[ROOT, CHAT]]
    assert (watched.run.status, watched.run.failure) == ("cancelled", None)
    assert roles(watched.run) == ["system", "user", "assistant"]


async def test_early_closed_astream(watched: Watched) -> None:
    stream = app(watched).astream(QUESTION, stream_mode="messages")
    async for _ in stream:
        break
    await stream.aclose()
    assert watched.run.status == "cancelled"
    assert watched.tree()[0][0] == ROOT
    assert [call.untrainable for call in watched.run.calls] == ["failed call"]


async def test_cancel(watched: Watched) -> None:
    started, never = asyncio.Event(), asyncio.Event()

    @tool
    async def look(key: int) -> str:
        """Never comes back."""
        started.set()
        await never.wait()
        return "no"

    running = asyncio.create_task(app(watched, tools=[look]).ainvoke(QUESTION))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert watched.tree() == [[ROOT, CHAT, LOOK, LOOK]]
    assert (watched.run.status, watched.run.failure) == ("cancelled", None)
    assert roles(watched.run) == ["system", "user", "assistant"]
    assert all(tool_run.error for tool_run in watched.run.tools)


def test_a_model_that_fails(watched: Watched) -> None:
    graph = app(watched, [calls(1), ConnectionError("no route; api_key=abcdef0123456 sk-proj-0123456789abcdef")])
    with pytest.raises(ConnectionError):
        graph.invoke(QUESTION)
    run = watched.run
    assert run.status == "error"
    assert run.failure is not None
    assert run.failure.kind == "ModelError"
    assert run.failure.message == "ConnectionError: no route; api_key=*** sk-***"
    assert roles(run) == ["system", "user", "assistant", "tool"]
    assert [call.untrainable for call in run.calls] == [None, "failed call"]


def test_a_limit_of_steps(watched: Watched) -> None:
    with pytest.raises(GraphRecursionError):
        app(watched, [calls(number) for number in range(9)]).invoke(QUESTION, {"recursion_limit": 4})
    run = watched.run
    assert run.failure is not None
    assert (run.status, run.failure.kind) == ("error", "GraphRecursionError")
    assert roles(run) == ["system", "user", "assistant", "tool", "assistant", "tool"]
