"""What `watch` takes and refuses, and that it passes on where user and reply stand."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteGraph
from pydantic_ai.models.test import TestModel

from cm2_agent.online.watch import flush, watch
from cm2_agent.online.watchable import check_watchable
from cm2_agent.store import SQLStore
from tests.tracing.apps import agent, says


def plain(question: str) -> str:
    return question


class Graphlike:
    def with_config(self, **config: Any) -> Graphlike:
        return self


REMOTE = RemoteGraph("desk", url="http://127.0.0.1:9")
REFUSED = {
    "a pydantic-ai model": (
        TestModel(),
        "a pydantic-ai TestModel; expected a compiled LangGraph graph or",
    ),
    "a remote graph": (REMOTE, "a RemoteGraph.*watch the graph in the application that serves it"),
    "a bound remote graph": (REMOTE.with_config(tags=["a"]), "a RemoteGraph"),
    "a function": (plain, "the function plain.*RunnableLambda.plain."),
    "a graph that is not compiled": (StateGraph(MessagesState), "StateGraph that is not compiled.*compile"),
    "a class": (MessagesState, "the class MessagesState.*give an instance"),
    "nothing": (None, "a builtins.NoneType; expected a compiled LangGraph graph"),
    "something alike": (Graphlike(), "Graphlike; expected a compiled LangGraph graph"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_watched_is_refused_with_what_to_do(case: str) -> None:
    graph, message = REFUSED[case]
    with pytest.raises(TypeError, match=f"watch was given .*{message}"):
        watch(graph, store="sqlite://")


def test_runnables_of_this_process_are_taken() -> None:
    for runnable in (agent(says("hi")), RunnableLambda(plain), RunnableLambda(plain) | plain, says("hi")):
        check_watchable(runnable)


class Desk(TypedDict, total=False):
    question: str
    hint: str
    answer: str


def test_keys_of_input_and_output(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"

    def reply(state: Desk) -> Desk:
        return {"answer": says("soon").invoke(f"{state['hint']}: {state['question']}").text}

    graph: Any = StateGraph(Desk)
    graph.add_node("reply", reply)
    graph.add_edge(START, "reply")
    watched = watch(graph.compile(), store=url, input="question", output="answer")
    watched.invoke({"question": "when?", "hint": "be brief"})
    assert flush(300)
    with SQLStore(url) as store:
        (trace,) = store.traces()
    assert [(message.role, message.text) for message in trace.messages] == [("user", "when?"), ("assistant", "soon")]
    with pytest.raises(TypeError, match="output is 3; expected a key"):
        watch(graph.compile(), store=url, output=3)  # type: ignore[arg-type]
