"""The 22 situations in which tracers of LangGraph go wrong, each on a real graph: the span tree, and the Run made of
it."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from cm2_agent.types.trace import Run, Trace
from tests.tracing.apps import ScriptedModel, agent, asks, calls
from tests.tracing.conftest import Watched

QUESTION: Any = {"messages": [("user", "what are 1 and 2?")]}
SCRIPT = [calls(1, 2), AIMessage(content="they are value 1 and value 2")]
CHAT, LOOK, ROOT = ["chat scripted"], ["execute_tool look"], "invoke_agent LangGraph"
TREE = [[ROOT, CHAT, LOOK, LOOK, CHAT]]
ROLES = ["system", "user", "assistant", "tool", "tool", "assistant"]


def app(watched: Watched, script: list[Any] = SCRIPT, **options: Any) -> Any:
    return agent(ScriptedModel(script=script, pause=options.pop("pause", 0.0)), **options).with_config(
        callbacks=[watched.handler]
    )


def roles(run: Run) -> list[str]:
    return [message.role for message in run.messages]


def whole(run: Run) -> None:
    """The ordinary run, with every call in its place and its tokens."""
    assert run.status == "ok"
    assert run.failure is None
    assert roles(run) == ROLES
    assert [call.message for call in run.calls] == [2, 5]
    assert [call.untrainable for call in run.calls] == [None, None]
    assert [call.completion_ids for call in run.calls] == [(0, 7), (1, 7)]
    assert run.messages[2].tool_calls[0].arguments == {"key": 1}
    assert [response.response for message in run.messages for response in message.responses] == ["value 1", "value 2"]
    assert run.messages[5].text == "they are value 1 and value 2"
    assert {(run_.name, run_.call_id, run_.result) for run_ in run.tools} == {
        ("look", "call1", "value 1"),
        ("look", "call2", "value 2"),
    }
    assert run.calls[0].started <= run.calls[0].ended <= run.calls[1].started <= run.ended


def test_invoke(watched: Watched) -> None:
    app(watched).invoke(QUESTION)
    assert watched.tree() == TREE
    whole(watched.run)


async def test_ainvoke(watched: Watched) -> None:
    await app(watched).ainvoke(QUESTION)
    assert watched.tree() == TREE
    whole(watched.run)


def test_stream(watched: Watched) -> None:
    parts = list(app(watched).stream(QUESTION, stream_mode=["updates", "messages"]))
    assert any(mode == "messages" for mode, _ in parts)
    assert watched.tree() == TREE
    whole(watched.run)


async def test_astream(watched: Watched) -> None:
    parts = [part async for part in app(watched).astream(QUESTION, stream_mode="messages")]
    assert len(parts) > 5
    assert watched.tree() == TREE
    whole(watched.run)


async def test_astream_events_v2(watched: Watched) -> None:
    kinds = {event["event"] async for event in app(watched).astream_events(QUESTION, version="v2")}
    assert "on_chat_model_stream" in kinds
    assert watched.tree() == TREE
    whole(watched.run)


def test_stream_events_v3(watched: Watched) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LangGraph marks v3 as experimental
        events = list(app(watched).stream_events(QUESTION, version="v3"))
    assert events
    assert watched.tree() == TREE
    whole(watched.run)


async def test_parallel_tools(watched: Watched) -> None:
    together = asyncio.Barrier(3)

    @tool
    async def look(key: int) -> str:
        """Look a key up; comes back only when three are looking at once."""
        await together.wait()
        return f"value {key}"

    await app(watched, [calls(1, 2, 3), AIMessage(content="done")], tools=[look]).ainvoke(QUESTION)
    assert watched.tree() == [[ROOT, CHAT, LOOK, LOOK, LOOK, CHAT]]
    assert roles(watched.run) == ["system", "user", "assistant", "tool", "tool", "tool", "assistant"]
    assert [response.id for message in watched.run.messages for response in message.responses] == [
        "call1",
        "call2",
        "call3",
    ]


@pytest.mark.parametrize("way", ["node", "called"])
def test_subgraph_node(watched: Watched, way: str) -> None:
    inner = agent(ScriptedModel(script=SCRIPT))
    outer: Any = StateGraph(MessagesState)
    outer.add_node("worker", inner if way == "node" else lambda state: {"messages": inner.invoke(state)["messages"]})
    outer.add_edge(START, "worker")
    outer.compile().with_config(callbacks=[watched.handler]).invoke(QUESTION)
    assert watched.tree() == TREE
    whole(watched.run)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_sub_agent_inside_a_tool(watched: Watched, asynchronous: bool) -> None:
    helper = agent(ScriptedModel(script=[calls(7), AIMessage(content="the helper says value 7")]))

    @tool
    async def look(key: int) -> str:
        """Ask the helper."""
        state = await helper.ainvoke(QUESTION) if asynchronous else helper.invoke(QUESTION)
        return str(state["messages"][-1].content)

    await app(watched, [calls(1), AIMessage(content="done")], tools=[look]).ainvoke(QUESTION)
    assert watched.tree() == [[ROOT, CHAT, [*LOOK, CHAT, LOOK, CHAT], CHAT]]
    run = watched.run
    assert roles(run) == ["system", "user", "assistant", "tool", "assistant"]
    assert [call.message for call in run.calls] == [2, None, None, 4]
    assert [call.prompt_ids is not None for call in run.calls] == [True] * 4
    assert [tool_run.result for tool_run in run.tools] == ["the helper says value 7", "value 7"]


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
    """Tools of one message in one node: what had answered before the interrupt runs, and is recorded, again, and is
    said once."""
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


async def test_twenty_concurrent(watched: Watched) -> None:
    graph = app(watched, pause=0.001)
    asked = [{"messages": [("user", f"question {number}")]} for number in range(20)]
    await asyncio.gather(*(graph.ainvoke(one, {"configurable": {"thread_id": str(i)}}) for i, one in enumerate(asked)))
    assert watched.tree() == TREE * 20
    assert len({run.id for run in watched.runs}) == 20
    for run in watched.runs:
        whole(run)
        assert run.messages[1].text == f"question {run.thread}"


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


def test_batch(watched: Watched) -> None:
    app(watched).batch([QUESTION] * 3)
    assert watched.tree() == TREE * 3
    for run in watched.runs:
        whole(run)


async def test_abatch(watched: Watched) -> None:
    await app(watched).abatch([QUESTION] * 3)
    assert watched.tree() == TREE * 3
    for run in watched.runs:
        whole(run)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_users_parent_span(watched: Watched, asynchronous: bool) -> None:
    tracer = watched.provider.get_tracer("the application")
    with tracer.start_as_current_span("request"):
        if asynchronous:
            await app(watched).ainvoke(QUESTION)
        else:
            app(watched).invoke(QUESTION)
        with tracer.start_as_current_span("afterwards"):
            pass
    assert watched.tree() == [["request", *TREE, ["afterwards"]]]
    whole(watched.run)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_user_spans_inside_tools(watched: Watched, asynchronous: bool) -> None:
    tracer = watched.provider.get_tracer("the application")

    @tool
    def look(key: int) -> str:
        """Look a key up, with a span of the application's own."""
        with tracer.start_as_current_span("database"):
            return f"value {key}"

    @tool("look")
    async def alook(key: int) -> str:
        """Look a key up, with a span of the application's own."""
        with tracer.start_as_current_span("database"):
            await asyncio.sleep(0)
            return f"value {key}"

    graph = app(watched, tools=[alook if asynchronous else look])
    if asynchronous:
        await graph.ainvoke(QUESTION)
    else:
        graph.invoke(QUESTION)
    inside = [*LOOK, ["database"]]
    assert watched.tree() == [[ROOT, CHAT, inside, inside, CHAT]]
    whole(watched.run)


class Other(BaseCallbackHandler):
    """A callback handler of the application's."""

    def __init__(self) -> None:
        self.models = 0

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.models += 1


def test_nested_config_callbacks(watched: Watched) -> None:
    """Callbacks of the caller's config, ours once more, and ours given afresh to a call inside a node."""
    other, model = Other(), ScriptedModel(script=[AIMessage(content="hello")])

    def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"], config={"callbacks": [watched.handler]})]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_node("work", agent(ScriptedModel(script=[None, *SCRIPT])).with_config(callbacks=[other]))
    graph.add_edge(START, "speak")
    graph.add_edge("speak", "work")
    compiled = graph.compile().with_config(callbacks=[watched.handler])
    compiled.invoke(QUESTION, {"callbacks": [other, watched.handler]})
    assert watched.tree() == [[ROOT, CHAT, CHAT, LOOK, LOOK, CHAT]]
    assert other.models >= 2
    assert roles(watched.run) == ["user", "assistant", "assistant", "tool", "tool", "assistant"]
    assert [call.message for call in watched.run.calls] == [1, 2, 5]


@pytest.mark.parametrize("handed_over", ["config", "parent"])
def test_thread_executor(watched: Watched, handed_over: str) -> None:
    """A plain thread pool copies no context: the parent comes from the config that is passed on."""
    model = ScriptedModel(script=[AIMessage(content="hello")])

    def speak(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        passed: Any = config if handed_over == "config" else {"callbacks": config.get("callbacks")}
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(model.invoke, state["messages"], passed) for _ in range(2)]
            return {"messages": [answer.result() for answer in answers]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    graph.compile().with_config(callbacks=[watched.handler]).invoke({"messages": [HumanMessage("hi")]})
    assert watched.tree() == [[ROOT, CHAT, CHAT]]
    assert roles(watched.run) == ["user", "assistant", "assistant"]
    assert sorted(call.message or 0 for call in watched.run.calls) == [1, 2]


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


def test_a_bare_model_and_a_bare_tool(watched: Watched) -> None:
    """Without a graph the handler makes a root of its own."""
    ScriptedModel(script=[AIMessage(content="hello")]).invoke("hi", {"callbacks": [watched.handler]})
    assert watched.tree() == [["invoke_agent scripted", CHAT]]
    assert roles(watched.run) == ["user", "assistant"]
    assert watched.run.calls[0].message == 1
