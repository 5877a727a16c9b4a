"""Situations in which tracers of LangGraph go wrong, each on a real graph: the span tree, and the Run made of it.

How a run ends is in test_handler_endings.py."""

from __future__ import annotations

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph

from tests.tracing.apps import ScriptedModel, agent, calls
from tests.tracing.conftest import Watched
from tests.tracing.ordinary_run import CHAT, LOOK, QUESTION, ROOT, SCRIPT, TREE, app, roles, whole


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


async def test_twenty_concurrent(watched: Watched) -> None:
    graph = app(watched, pause=0.001)
    asked = [{"messages": [("user", f"question {number}")]} for number in range(20)]
    await asyncio.gather(*(graph.ainvoke(one, {"configurable": {"thread_id": str(i)}}) for i, one in enumerate(asked)))
    assert watched.tree() == TREE * 20
    assert len({run.id for run in watched.runs}) == 20
    for run in watched.runs:
        whole(run)
        assert run.messages[1].text == f"question {run.thread}"


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


def test_a_bare_model_and_a_bare_tool(watched: Watched) -> None:
    """Without a graph the handler makes a root of its own."""
    ScriptedModel(script=[AIMessage(content="hello")]).invoke("hi", {"callbacks": [watched.handler]})
    assert watched.tree() == [["invoke_agent scripted", CHAT]]
    assert roles(watched.run) == ["user", "assistant"]
    assert watched.run.calls[0].message == 1
