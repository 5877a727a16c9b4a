"""The states that a run's graph went through and the history that it found: by these the store joins runs and tells
branches."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.run import Run
from tests.tracing.apps import ScriptedModel, agent, asks, calls, says
from tests.tracing.conftest import Watched
from tests.tracing.dialogues import THREAD, chain, history, lines, speaker, user

EMPTY = "0" * 16
_FAILS = RuntimeError("rate limit")


def counts(run: Run) -> list[int]:
    return [mark.messages for mark in run.states]


def continues(run: Run, earlier: Run) -> bool:
    """Whether the run begins in the state in which the other ended."""
    return run.states[0].hash == earlier.states[-1].hash


def place(run: Run, earlier: Run) -> int | None:
    """How many of the other's messages were there in the state in which the run begins."""
    return next((mark.messages for mark in earlier.states if mark.hash == run.states[0].hash), None)


def test_the_runs_of_a_thread_continue_each_other(watched: Watched) -> None:
    model = ScriptedModel(script=[calls(1), AIMessage(content="yes")], per_turn=True)
    graph = agent(model, checkpointer=InMemorySaver()).with_config(callbacks=[watched.handler])
    for text in ("one", "two", "three"):
        graph.invoke(user(text), THREAD)
    first, second, third = watched.runs
    assert first.states[0].hash == EMPTY
    assert counts(first) == [0, 2, 3, 4, 5]  # the prompt comes with the input
    assert counts(second) == counts(third) == [0, 1, 2, 3, 4]
    assert continues(second, first)
    assert continues(third, second)
    assert len({mark.hash for run in watched.runs for mark in run.states}) == 13
    assert first.history == ()
    turn = ["assistant: call1", "tool: call1", "assistant: yes"]
    assert history(second) == ["user: one", *turn]
    assert history(third) == ["user: one", *turn, "user: two", *turn]


def test_states_are_the_same_in_every_process(watched: Watched) -> None:
    """A handler that never saw the thread names its states as the one that did."""
    graph: Any = chain(watched, speaker("First.", "Second.", "Third."), checkpointer=InMemorySaver())
    graph.invoke(user("one"), THREAD)
    graph.invoke(user("two"), THREAD)
    fresh: list[Run] = []
    watched.runs.clear()
    graph.invoke(user("three"), {**THREAD, "callbacks": [capture(fresh.append)]})
    assert fresh[0].states == watched.run.states
    assert fresh[0].history == watched.run.history


def test_a_fork_begins_in_an_earlier_state(watched: Watched) -> None:
    graph = chain(watched, speaker("First.", "Second.", "Other second."), checkpointer=InMemorySaver())
    graph.invoke(user("one"), THREAD)
    graph.invoke(user("two"), THREAD)
    older = [state for state in graph.get_state_history(THREAD) if len(state.values.get("messages", ())) == 2]
    graph.invoke(user("two, otherwise"), older[0].config)
    first, second, fork = watched.runs
    assert lines(fork) == ["user: two, otherwise", "assistant: Other second."]
    assert history(fork) == ["user: one", "assistant: First."]
    assert continues(fork, first)
    assert continues(second, first)
    assert not continues(fork, second)


@pytest.mark.parametrize("before", ["node0", "node1"])
def test_a_reply_is_generated_again_from_the_middle_of_a_run(watched: Watched, before: str) -> None:
    graph = chain(watched, speaker("A.", "A again."), speaker("B.", "B again."), checkpointer=InMemorySaver())
    graph.invoke(user("one"), THREAD)
    (state,) = [state for state in graph.get_state_history(THREAD) if state.next == (before,)]
    graph.invoke(None, state.config)
    first, again = watched.runs
    if before == "node0":
        assert lines(again) == ["assistant: A again.", "assistant: B again."]
        assert (history(again), place(again, first)) == (["user: one"], 1)
    else:
        assert lines(again) == ["assistant: B again."]
        assert (history(again), place(again, first)) == (["user: one", "assistant: A."], 2)


def test_an_edited_question(watched: Watched) -> None:
    """`update_state` on an older checkpoint: the run begins in a state that no run has left."""
    graph = chain(watched, speaker("First.", "Edited answer."), checkpointer=InMemorySaver())
    graph.invoke(user("one"), THREAD)
    (state,) = [state for state in graph.get_state_history(THREAD) if state.next == ("node0",)]
    question = state.values["messages"][0]
    config = graph.update_state(state.config, {"messages": [HumanMessage("one, edited", id=question.id)]})
    graph.invoke(None, config)
    first, edited = watched.runs
    assert place(edited, first) is None
    assert lines(edited) == ["assistant: Edited answer."]
    assert history(edited) == ["user: one, edited"]


def test_interrupts_and_resumes(watched: Watched) -> None:
    asked = AIMessage("", tool_calls=[*calls(1).tool_calls, *asks("may I?").tool_calls])
    graph = agent(ScriptedModel(script=[asked, AIMessage(content="done")]), checkpointer=InMemorySaver())
    graph = graph.with_config(callbacks=[watched.handler])
    graph.invoke(user("hi"), THREAD)
    graph.invoke(Command(resume="yes"), THREAD)
    first, second = watched.runs
    assert counts(first) == [0, 2, 3]
    assert counts(second) == [0, 2, 3]
    assert continues(second, first)


@pytest.mark.parametrize("retry", ["none", "the message again", "the same message"])
def test_a_turn_that_is_tried_again_after_the_model_failed(watched: Watched, retry: str) -> None:
    script = iter([AIMessage("First."), _FAILS, AIMessage("Second.")])

    def answer(state: Any) -> dict[str, Any]:
        return {"messages": [ScriptedModel(script=[next(script)] * 9).invoke(state["messages"])]}

    graph = chain(watched, answer, checkpointer=InMemorySaver())
    graph.invoke(user("one"), THREAD)
    question = {"messages": [HumanMessage("two", id="q")]} if retry == "the same message" else user("two")
    with pytest.raises(RuntimeError):
        graph.invoke(question, THREAD)
    graph.invoke(None if retry == "none" else question, THREAD)
    first, failed, again = watched.runs
    assert [line for run in watched.runs for line in lines(run)] == [
        "user: one",
        "assistant: First.",
        "user: two",
        "assistant: Second.",
    ]
    assert (failed.status, counts(failed), counts(again)[-1]) == ("error", [0, 1], 1)
    assert continues(failed, first)
    assert continues(again, failed)
    assert history(again) == ["user: one", "assistant: First.", "user: two"]


@pytest.mark.parametrize("again", [None, "one"])
def test_the_first_turn_tried_again_has_its_prompt_once(watched: Watched, again: str | None) -> None:
    script = iter([_FAILS, AIMessage("First."), AIMessage("Second.")])

    def answer(state: Any) -> dict[str, Any]:
        model = ScriptedModel(script=[next(script)] * 9)
        return {"messages": [model.invoke([SystemMessage("You help."), *state["messages"]])]}

    graph = chain(watched, answer, checkpointer=InMemorySaver())
    with pytest.raises(RuntimeError):
        graph.invoke(user("one"), THREAD)
    graph.invoke(again and user(again), THREAD)
    graph.invoke(user("two"), THREAD)
    assert [lines(run) for run in watched.runs] == [
        ["system: You help.", "user: one"],
        ["assistant: First."],
        ["user: two", "assistant: Second."],
    ]


def test_a_client_that_sends_the_whole_conversation(watched: Watched) -> None:
    """Without a checkpointer: history is what it sent before the last question; states hold for this run alone."""
    graph = chain(watched, speaker("First.", "Second.", "Second, again.", "Edited answer."))
    said: list[Any] = [("user", "one")]
    graph.invoke({"messages": said})
    said += [("ai", "First."), ("user", "two")]
    graph.invoke({"messages": said})
    graph.invoke({"messages": said})
    graph.invoke({"messages": [("user", "one, edited")]})
    assert [history(run) for run in watched.runs] == [
        [],
        ["user: one", "assistant: First."],
        ["user: one", "assistant: First."],
        [],
    ]
    assert [lines(run)[0] for run in watched.runs] == ["user: one", "user: two", "user: two", "user: one, edited"]
    assert [run.states[0].hash == EMPTY for run in watched.runs] == [True, False, False, True]
    assert [counts(run) for run in watched.runs] == [[0, 1, 2]] * 4


def test_a_system_message_that_the_client_sends(watched: Watched) -> None:
    graph = chain(watched, speaker("First.", "Second."))
    graph.invoke({"messages": [("system", "Be kind."), ("user", "one")]})
    graph.invoke({"messages": [("system", "Be kind."), ("user", "one"), ("ai", "First."), ("user", "two")]})
    assert lines(watched.runs[0]) == ["system: Be kind.", "user: one", "assistant: First."]
    assert watched.runs[0].states[0].hash == EMPTY
    assert lines(watched.runs[1]) == ["user: two", "assistant: Second."]
    assert history(watched.runs[1]) == ["system: Be kind.", "user: one", "assistant: First."]


def test_a_graph_whose_state_shows_no_messages_has_no_states(watched: Watched) -> None:
    says("hello").invoke([("user", "a"), ("ai", "b"), ("user", "c")], {"callbacks": [watched.handler]})
    assert watched.run.states == ()
    assert history(watched.run) == ["user: a", "assistant: b"]


def test_a_subgraph_of_its_own_conversation(watched: Watched) -> None:
    """What an inner agent says to itself is no part of the dialogue, nor of the states."""
    inner: Any = StateGraph(MessagesState)
    inner.add_node("speak", speaker("a thought"))
    inner.add_edge(START, "speak")
    thinker = inner.compile()

    def think(state: Any) -> dict[str, Any]:
        thought = thinker.invoke(user("think about it"))["messages"][-1].text
        return {"messages": [AIMessage(f"I thought: {thought}")]}

    chain(watched, think).invoke(user("hi"))
    assert lines(watched.run) == ["user: hi", "assistant: I thought: a thought"]
    assert counts(watched.run) == [0, 1, 2]
