"""Interrupts inside tools, crashes of tools, and ids that come twice: every answer is in the dialogue once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command, interrupt

from cm2_agent.types.trace import Trace
from tests.tracing.apps import ScriptedModel, agent, asks, calls, look
from tests.tracing.conftest import Watched
from tests.tracing.dialogues import THREAD, lines, user


@tool
def ask_human(question: str) -> str:
    """Ask a human."""
    return f"human said {interrupt(question)}"


@tool
def ask_twice(question: str) -> str:
    """Ask a human two things."""
    return f"{interrupt(question)} and {interrupt('sure?')}"


def within(inner: Any) -> Any:
    """The agent as a subgraph of another."""
    graph: Any = StateGraph(MessagesState)
    graph.add_node("worker", inner)
    graph.add_edge(START, "worker")
    return graph.compile(checkpointer=InMemorySaver())


pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent")
TOOLS = [ask_human, ask_twice, look]
BUILDERS: dict[str, Any] = {
    "create_agent": lambda model: create_agent(model, TOOLS, checkpointer=InMemorySaver()),
    "create_react_agent": lambda model: create_react_agent(model, TOOLS, checkpointer=InMemorySaver()),
    "one tool node": lambda model: agent(model, tools=TOOLS, checkpointer=InMemorySaver()),
    "create_agent in a subgraph": lambda model: within(create_agent(model, TOOLS)),
    "create_react_agent in a subgraph": lambda model: within(create_react_agent(model, TOOLS)),
    "tool node in a subgraph": lambda model: within(agent(model, tools=TOOLS)),
}


def both(*messages: AIMessage) -> AIMessage:
    return AIMessage("", tool_calls=[call for message in messages for call in message.tool_calls])


def built(watched: Watched, how: str, *replies: AIMessage) -> Any:
    graph = BUILDERS[how](ScriptedModel(script=[*replies, AIMessage(content="done")]))
    return graph.with_config(callbacks=[watched.handler])


def dialogue(watched: Watched) -> list[str]:
    """The trace's lines, without the prompt that one of the agents has."""
    return [line for run in watched.runs for line in lines(run) if not line.startswith("system")]


def answered(watched: Watched) -> list[tuple[str | None, Any]]:
    steps = Trace(id="T", runs=tuple(watched.runs)).steps
    uses = [use for step in steps for use in step.tool_uses]
    return [(use.call.id, None if use.response is None else use.response.response) for use in uses]


@pytest.mark.parametrize("how", BUILDERS)
@pytest.mark.parametrize("order", ["alone", "first", "last"])
@pytest.mark.parametrize("way", ["invoke", "stream", "astream"])
def test_an_answer_to_an_interrupt_in_a_tool(watched: Watched, how: str, order: str, way: str) -> None:
    asked = {"alone": both(asks("may I?")), "first": both(asks("may I?"), calls(1)), "last": both(calls(1), asks("x"))}
    graph = built(watched, how, asked[order])

    def go(given: Any) -> None:
        if way == "invoke":
            graph.invoke(given, THREAD)
        elif way == "stream":
            assert list(graph.stream(given, THREAD, stream_mode=["messages", "updates"]))
        else:

            async def all_parts() -> list[Any]:
                return [part async for part in graph.astream(given, THREAD, stream_mode="updates")]

            assert asyncio.run(all_parts())

    go(user("hi"))
    go(Command(resume="yes"))
    assert [run.status for run in watched.runs] == ["interrupted", "ok"]
    ids = {"alone": "ask", "first": "ask,call1", "last": "call1,ask"}[order]
    got = dialogue(watched)
    assert (got[0], got[1], got[-1]) == ("user: hi", f"assistant: {ids}", "assistant: done")
    assert sorted(got[2:-1]) == sorted(f"tool: {id}" for id in ids.split(","))
    assert dict(answered(watched)) == {id: {"ask": "human said yes", "call1": "value 1"}[id] for id in ids.split(",")}
    assert [call.message is not None for run in watched.runs for call in run.calls] == [True, True]


@pytest.mark.parametrize("how", BUILDERS)
def test_a_tool_that_asks_twice(watched: Watched, how: str) -> None:
    asked = AIMessage("", tool_calls=[{"name": "ask_twice", "args": {"question": "may I?"}, "id": "ask"}])
    graph = built(watched, how, asked)
    graph.invoke(user("hi"), THREAD)
    graph.invoke(Command(resume="yes"), THREAD)
    graph.invoke(Command(resume="very"), THREAD)
    assert [run.status for run in watched.runs] == ["interrupted", "interrupted", "ok"]
    assert dialogue(watched) == ["user: hi", "assistant: ask", "tool: ask", "assistant: done"]
    assert answered(watched) == [("ask", "yes and very")]


@pytest.mark.parametrize("how", ["create_agent", "create_react_agent"])
def test_two_tools_that_ask_at_once(watched: Watched, how: str) -> None:
    """They are answered one after the other, by the ids of their interrupts."""
    other = AIMessage("", tool_calls=[{"name": "ask_human", "args": {"question": "and this?"}, "id": "ask2"}])
    graph = built(watched, how, both(asks("may I?"), other))
    graph.invoke(user("hi"), THREAD)
    while pending := graph.get_state(THREAD).interrupts:
        graph.invoke(Command(resume={pending[0].id: f"to {pending[0].value}"}), THREAD)
    assert [run.status for run in watched.runs] == ["interrupted", "interrupted", "ok"]
    got = dialogue(watched)
    assert (got[:2], got[-1]) == (["user: hi", "assistant: ask,ask2"], "assistant: done")
    assert sorted(got[2:-1]) == ["tool: ask", "tool: ask2"]
    assert answered(watched) == [("ask", "human said to may I?"), ("ask2", "human said to and this?")]


@pytest.mark.parametrize("how", BUILDERS)
@pytest.mark.parametrize("retried", [False, True])
def test_a_tool_that_kills_the_run(watched: Watched, how: str, retried: bool) -> None:
    tries: list[int] = []

    @tool
    def look(key: int) -> str:
        """Fails the first time."""
        tries.append(key)
        if len(tries) == 1:
            raise ConnectionError("database down")
        return f"value {key}"

    if how == "one tool node":
        builders: Any = lambda model: agent(  # noqa: E731 (a short one of several)
            model, tools=[look], handle_errors=False, checkpointer=InMemorySaver()
        )
    elif how == "tool node in a subgraph":
        builders = lambda model: within(agent(model, tools=[look], handle_errors=False))  # noqa: E731 (a short one of several)
    else:
        make: Any = create_react_agent if "react" in how else create_agent
        if "subgraph" in how:
            builders = lambda model: within(make(model, [look]))  # noqa: E731 (a short one of several)
        else:
            builders = lambda model: make(model, [look], checkpointer=InMemorySaver())  # noqa: E731 (a short one of several)
    graph = builders(ScriptedModel(script=[calls(1), AIMessage(content="done")])).with_config(
        callbacks=[watched.handler]
    )
    with pytest.raises(ConnectionError):
        graph.invoke(user("hi"), THREAD)
    run = watched.run
    assert (run.status, run.failure.kind if run.failure else None) == ("error", "ToolError")
    assert dialogue(watched) == ["user: hi", "assistant: call1"]
    assert [(one.call_id, one.error) for one in run.tools] == [("call1", "ConnectionError: database down")]
    assert [use.status for step in Trace.of(run).steps for use in step.tool_uses] == ["failed"]
    if retried:
        graph.invoke(None, THREAD)
        assert dialogue(watched) == ["user: hi", "assistant: call1", "tool: call1", "assistant: done"]
        assert answered(watched) == [("call1", "value 1")]


def test_a_hand_written_loop_in_one_node_that_crashes(watched: Watched) -> None:
    """Nothing is written to the state: what the model had answered is in the dialogue all the same."""
    model = ScriptedModel(script=[calls(1), calls(-2), AIMessage(content="done")])

    def loop(state: Any) -> dict[str, Any]:
        messages = list(state["messages"])
        while not messages or not isinstance(messages[-1], AIMessage) or messages[-1].tool_calls:
            messages.append(model.invoke(messages))
            messages += [look.invoke(call) for call in messages[-1].tool_calls]
        return {"messages": messages[len(state["messages"]) :]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("loop", loop)
    graph.add_edge(START, "loop")
    with pytest.raises(ValueError, match="no key"):
        graph.compile().with_config(callbacks=[watched.handler]).invoke(user("hi"))
    assert lines(watched.run) == ["user: hi", "assistant: call1", "tool: call1", "assistant: call-2"]
    assert [call.message for call in watched.run.calls] == [1, 3]


@pytest.mark.parametrize("how", ["create_agent", "one tool node"])
def test_one_id_twice_in_a_message(watched: Watched, how: str) -> None:
    same = AIMessage("", tool_calls=[{"name": "look", "args": {"key": key}, "id": "1"} for key in (1, 2)])
    graph = built(watched, how, same)
    graph.invoke(user("hi"), THREAD)
    run = watched.run
    assert [part.response for message in run.messages for part in message.responses] == ["value 1", "value 2"]
    assert [use.arguments for step in Trace.of(run).steps for use in step.tool_uses] == [{"key": 1}, {"key": 2}]
    assert [call.changed for call in run.calls] == [None, None]


def test_one_id_twice_where_the_run_ends_before_the_answers_are_shown(watched: Watched) -> None:
    """The second call fails and kills the run; the first has run, and its answer is the first's."""
    same = AIMessage("", tool_calls=[{"name": "look", "args": {"key": key}, "id": "1"} for key in (1, -2)])
    graph = agent(ScriptedModel(script=[same]), handle_errors=False).with_config(callbacks=[watched.handler])
    with pytest.raises(ValueError, match="no key"):
        graph.invoke(user("hi"))
    (step,) = Trace.of(watched.run).steps
    assert [part.response for part in step.responses] == ["value 1"]
    assert [use.status for use in step.tool_uses] == ["ok", "failed"]


@pytest.mark.parametrize("how", [how for how in BUILDERS if how != "one tool node" and not how.startswith("tool node")])
def test_two_tools_that_are_answered_at_once(watched: Watched, how: str) -> None:
    other = AIMessage("", tool_calls=[{"name": "ask_human", "args": {"question": "and this?"}, "id": "ask2"}])
    graph = built(watched, how, both(asks("may I?"), calls(1), other))
    graph.invoke(user("hi"), THREAD)
    pending = graph.get_state(THREAD).interrupts
    graph.invoke(Command(resume={one.id: f"to {one.value}" for one in pending}), THREAD)
    assert [run.status for run in watched.runs] == ["interrupted", "ok"]
    assert sorted(dialogue(watched)) == sorted(
        ["user: hi", "assistant: ask,call1,ask2", "tool: ask", "tool: call1", "tool: ask2", "assistant: done"]
    )
    assert dict(answered(watched)) == {
        "ask": "human said to may I?",
        "call1": "value 1",
        "ask2": "human said to and this?",
    }


def test_an_interrupt_in_an_agent_within_a_tool(watched: Watched) -> None:
    """The inner agent's conversation is the tool's own; its answer is the tool's."""
    inner: Any = create_agent(ScriptedModel(script=[asks("may I?"), AIMessage("the human agreed")]), [ask_human])

    @tool
    def helper(question: str) -> str:
        """Ask the helper."""
        return str(inner.invoke(user(question))["messages"][-1].text)

    asked = AIMessage("", tool_calls=[{"name": "helper", "args": {"question": "?"}, "id": "h"}])
    model = ScriptedModel(script=[asked, AIMessage("done")])
    graph: Any = create_agent(model, [helper], checkpointer=InMemorySaver()).with_config(callbacks=[watched.handler])
    graph.invoke(user("hi"), THREAD)
    graph.invoke(Command(resume="yes"), THREAD)
    assert dialogue(watched) == ["user: hi", "assistant: h", "tool: h", "assistant: done"]
    assert answered(watched) == [("h", "the human agreed")]


def test_calls_without_ids(watched: Watched) -> None:
    """A node runs them by hand; the first fails and the second does not."""
    keys = (-1, 2)
    asked = AIMessage("", tool_calls=[{"name": "look", "args": {"key": key}, "id": None} for key in keys])
    model = ScriptedModel(script=[asked, AIMessage("done")])

    def run_tools(state: Any) -> dict[str, Any]:
        answers = []
        for call in state["messages"][-1].tool_calls:
            try:
                answers.append(ToolMessage(look.invoke(call["args"]), tool_call_id=""))
            except ValueError as error:
                answers.append(ToolMessage(str(error), tool_call_id="", status="error"))
        return {"messages": answers}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", run_tools)
    graph.add_edge(START, "answer")
    graph.add_conditional_edges("answer", lambda s: "tools" if s["messages"][-1].tool_calls else "__end__")
    graph.add_edge("tools", "answer")
    graph.compile().with_config(callbacks=[watched.handler]).invoke(user("hi"))
    (step, _) = Trace.of(watched.run).steps
    assert [use.arguments for use in step.tool_uses] == [{"key": -1}, {"key": 2}]
    assert [use.response.response for use in step.tool_uses if use.response] == ["no key -1", "value 2"]
    assert [use.status for use in step.tool_uses] == ["failed", "ok"]
    assert [call.changed for call in watched.run.calls] == [None, None]
