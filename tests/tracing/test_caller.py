"""The user, the session and the tags of a run, from wherever the caller's config says them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from tests.tracing.apps import agent, says
from tests.tracing.conftest import Watched

HI: Any = {"messages": [("user", "hi")]}


@pytest.mark.parametrize(
    "config",
    [
        {"metadata": {"user_id": 7, "session_id": "s"}},
        {"metadata": {"langfuse_user_id": "7", "langfuse_session_id": "s"}},
        {"metadata": {"langgraph_user_id": "7", "conversation_id": "s"}},
        {"configurable": {"user_id": "7", "session_id": "s", "thread_id": "t"}},
        {"configurable": {"langgraph_auth_user_id": "7"}, "metadata": {"session_id": "s", "user": {"name": "x"}}},
        {"metadata": {"user_id": "7"}, "configurable": {"user_id": "8", "session_id": "s"}},
    ],
)
def test_user_and_session(watched: Watched, config: Any) -> None:
    agent(says("hello")).with_config(callbacks=[watched.handler]).invoke(HI, {**config, "tags": ["beta", "vip"]})
    run = watched.run
    assert (run.user, run.session, run.tags) == ("7", "s", ("beta", "vip"))
    assert run.attributes["tags"] == ["beta", "vip"]
    given = {key: value for key, value in config.get("metadata", {}).items() if not key.startswith("langgraph_")}
    assert {key: run.metadata[key] for key in given} == given


def test_the_context_of_a_graph(watched: Watched) -> None:
    @dataclass
    class Context:
        user_id: str
        session_id: str

    graph: Any = StateGraph(MessagesState, context_schema=Context)
    graph.add_node("reply", lambda state: {"messages": [says("hello").invoke(state["messages"])]})
    graph.add_edge(START, "reply")
    graph.compile().with_config(callbacks=[watched.handler]).invoke(HI, context=Context("7", "s"))
    assert (watched.run.user, watched.run.session) == ("7", "s")


def test_nobody(watched: Watched) -> None:
    agent(says("hello")).with_config(callbacks=[watched.handler]).invoke(HI, {"metadata": {"user_id": None}})
    assert (watched.run.user, watched.run.session, watched.run.tags) == (None, None, ())
