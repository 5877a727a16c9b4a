"""Replies that a later node rewrites: what reached the user is the reply, and the draft stays on its model call."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from tests.tracing.apps import ScriptedModel, calls, says
from tests.tracing.conftest import Watched
from tests.tracing.dialogues import THREAD, chain, lines, speaker, user, written

DRAFT, FINAL = "The SECRET is 42.", "I cannot say that."
SPOKEN = ["user: tell me", f"assistant: {FINAL}"]


class Listed(TypedDict):
    messages: list[Any]


class Drafted(MessagesState):
    draft: str


def in_place(state: Any) -> dict[str, Any]:
    state["messages"][-1].content = FINAL
    return {}


def in_place_and_back(state: Any) -> dict[str, Any]:
    state["messages"][-1].content = FINAL
    return {"messages": [state["messages"][-1]]}


WAYS: dict[str, Any] = {
    "new id": lambda s: {"messages": [RemoveMessage(id=s["messages"][-1].id), AIMessage(FINAL)]},
    "same id": lambda s: {"messages": [AIMessage(FINAL, id=s["messages"][-1].id)]},
    "by a model": lambda s: {
        "messages": [
            RemoveMessage(id=s["messages"][-1].id),
            says(FINAL).invoke([HumanMessage(f"Moderate: {s['messages'][-1].text}")]),
        ]
    },
    "in place": in_place,
    "in place and back": in_place_and_back,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_reached_the_user_is_the_reply(watched: Watched, way: str, streamed: bool) -> None:
    graph = chain(watched, speaker(DRAFT, DRAFT), WAYS[way], checkpointer=InMemorySaver())
    for _ in range(2):
        if streamed:
            assert list(graph.stream(user("tell me"), THREAD, stream_mode="messages"))
        else:
            graph.invoke(user("tell me"), THREAD)
    for run in watched.runs:
        assert lines(run) == SPOKEN
        draft = run.calls[0]
        assert draft.output is not None
        assert (draft.output.text, draft.message, draft.changed) == (DRAFT, 1, "rewritten")
        assert draft.untrainable == "rewritten after it was sampled"
        assert [(call.message, call.changed) for call in run.calls[1:]] == ([(1, None)] if way == "by a model" else [])


def test_a_state_that_is_a_plain_list(watched: Watched) -> None:
    graph = chain(
        watched,
        lambda s: {"messages": [*s["messages"], says(DRAFT).invoke(s["messages"])]},
        lambda s: {"messages": [*s["messages"][:-1], AIMessage(FINAL)]},
        state=Listed,
    )
    graph.invoke({"messages": [HumanMessage("tell me")]})
    assert lines(watched.run) == SPOKEN
    assert [(call.message, call.changed) for call in watched.run.calls] == [(1, "rewritten")]


@pytest.mark.parametrize(("final", "changed"), [(FINAL, "rewritten"), (DRAFT, None), (f"{DRAFT} 🙂", "rewritten")])
def test_a_draft_under_another_key(watched: Watched, final: str, changed: str | None) -> None:
    graph = chain(
        watched,
        lambda s: {"draft": says(DRAFT).invoke(s["messages"]).text},
        lambda s: {"messages": [AIMessage(final)]},
        state=Drafted,
    )
    graph.invoke(user("tell me"))
    assert lines(watched.run) == ["user: tell me", f"assistant: {final}"]
    assert [(call.message, call.changed) for call in watched.run.calls] == [(1, changed)]


@pytest.mark.parametrize("removed", ["in the next step", "at once"])
def test_a_reply_that_is_taken_back_and_tried_again(watched: Watched, removed: str) -> None:
    """A check removes the reply, and the model is asked once more."""
    script = iter([DRAFT, FINAL])

    def answer(state: Any) -> dict[str, Any]:
        return {"messages": [says(next(script)).invoke(state["messages"])]}

    def check(state: Any) -> dict[str, Any]:
        bad = "SECRET" in state["messages"][-1].text
        return {"messages": [RemoveMessage(id=state["messages"][-1].id)] if bad else []}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_node("check", check)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", "check")
    graph.add_conditional_edges("check", lambda s: "answer" if s["messages"][-1].type == "human" else "__end__")
    graph.compile().with_config(callbacks=[watched.handler]).invoke(user("tell me"))
    assert lines(watched.run) == SPOKEN
    assert [(call.message, call.changed) for call in watched.run.calls] == [(1, "rewritten"), (1, None)]


def test_what_is_removed_without_a_replacement_was_said(watched: Watched) -> None:
    graph = chain(
        watched,
        speaker("First.", "Second."),
        lambda s: {"messages": [RemoveMessage(id=s["messages"][-1].id)]},
        checkpointer=InMemorySaver(),
    )
    graph.invoke(user("one"), THREAD)
    graph.invoke(user("two"), THREAD)
    assert [lines(run) for run in watched.runs] == [
        ["user: one", "assistant: First."],
        ["user: two", "assistant: Second."],
    ]
    assert [call.changed for run in watched.runs for call in run.calls] == [None, None]


def test_a_later_turn_does_not_change_what_was_said(watched: Watched) -> None:
    """The reply is shortened in the state once the user has read it."""

    def shorten(state: Any) -> dict[str, Any]:
        old = [one for one in state["messages"][:-1] if one.type == "ai"]
        return {"messages": [AIMessage("…", id=one.id) for one in old]}

    graph = chain(watched, shorten, speaker("First.", "Second.", "Third."), checkpointer=InMemorySaver())
    for text in ("one", "two", "three"):
        graph.invoke(user(text), THREAD)
    assert [lines(run)[-1] for run in watched.runs] == ["assistant: First.", "assistant: Second.", "assistant: Third."]
    assert [message.text for message in watched.runs[2].history] == ["one", "First.", "two", "Second."]
    assert [message.text for message in watched.runs[2].calls[0].input] == ["one", "…", "two", "…", "three"]


def test_notes_of_other_nodes_are_no_replacement(watched: Watched) -> None:
    """A router's answer is no draft of what another node says."""
    graph = chain(
        watched,
        lambda s: {"draft": says("billing").invoke([HumanMessage("Which department?")]).text},
        lambda s: {"messages": [AIMessage("One moment.")]},
        speaker("Your bill is 7."),
        state=Drafted,
    )
    graph.invoke(user("tell me"))
    assert lines(watched.run) == ["user: tell me", "assistant: One moment.", "assistant: Your bill is 7."]
    assert written(watched.run) == [None, "Your bill is 7."]


def test_a_call_that_did_not_run_is_replaced(watched: Watched) -> None:
    """The application takes the call back before it runs, and answers itself."""
    graph = chain(
        watched,
        lambda s: {"messages": [ScriptedModel(script=[calls(1)]).invoke(s["messages"])]},
        lambda s: {"messages": [RemoveMessage(id=s["messages"][-1].id), AIMessage(FINAL)]},
    )
    graph.invoke(user("tell me"))
    assert lines(watched.run) == SPOKEN
    assert [(call.message, call.changed) for call in watched.run.calls] == [(1, "rewritten")]


def test_a_worker_s_answer_as_a_user_s_message_is_the_reply_where_nobody_else_replies(watched: Watched) -> None:
    """Teams of agents write what a worker found as a named user's message, for their supervisor."""

    def worker(state: Any) -> Any:
        found = says("It is 42.").invoke([HumanMessage("Find it.")])
        return {"messages": [HumanMessage(found.text, name="researcher")]}

    alone = chain(watched, worker, checkpointer=InMemorySaver())
    for _ in range(2):
        alone.invoke(user("find it"), THREAD)
    for run in watched.runs:
        assert lines(run) == ["user: find it", "assistant: It is 42."]
        assert written(run) == ["It is 42."]
        assert run.calls[0].changed is None
        assert run.messages[1].name == "researcher"
    assert watched.runs[0].states[-1].hash == watched.runs[1].states[0].hash
    chain(watched, worker, speaker("The answer is 42.")).invoke(user("find it"))
    assert lines(watched.runs[2]) == ["user: find it", "assistant: The answer is 42."]
