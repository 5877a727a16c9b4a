"""Traces in memory: they grow by the runs that are saved, and only where these are all the runs that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from cm2_agent import Checklist, Item, View, watch
from cm2_agent.online.live_traces import LiveTraces, weight_of
from cm2_agent.online.watch import flush
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Branch, ModelCall, Run
from cm2_agent.types.trace import Trace
from tests.online.stores import live_to
from tests.tracing.apps import ScriptedModel, agent, calls


def run(number: int, **changes: Any) -> Run:
    own = (Message.of("user", f"Question {number}"), Message.of("assistant", "Yes"))
    made = Run(id=str(number), thread="t", messages=own, started=number, ended=number + 1)
    return replace(made, **changes)


def held(*runs: Run) -> LiveTraces:
    traces = LiveTraces()
    for one in runs:
        traces.add("t", one)
    return traces


def test_a_trace_grows_by_the_runs_that_are_saved() -> None:
    traces = held(run(1))
    first = traces.get("t", 1)
    assert first is not None
    assert first.turns
    traces.add("t", run(2))
    second = traces.get("t", 2)
    assert second == Trace(id="t", runs=(run(1), run(2)))
    assert second is not None
    assert second.turns[0] is first.turns[0]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_trace_that_has_other_runs_in_the_store_is_loaded(count: int) -> None:
    traces = held(run(1), run(2))
    assert traces.get("t", count) is None
    assert traces.get("t", 2) is None, "nor is it known any more"


@pytest.mark.parametrize(
    "later",
    [run(0), run(1, messages=(Message.of("user", "Other"),)), run(1, status="error")],
    ids=["began before", "saved again with other messages", "saved again with another end"],
)
def test_a_run_that_does_not_come_last_is_read_from_the_store(later: Run) -> None:
    assert held(run(1), later).get("t", 2) is None
    assert held(run(1), later).get("t", 1) is None


def test_a_run_that_was_loaded_before_it_was_announced_counts_once() -> None:
    traces = LiveTraces()
    traces.put(Trace(id="t", runs=(run(1), run(2))))
    traces.add("t", run(2))
    assert traces.get("t", 2) is not None


@pytest.mark.parametrize(
    "first",
    [
        run(1, history=(Message.of("user", "Before"),)),
        run(1, trace="t", thread="parent", branch=Branch(parent="parent", messages=2)),
        run(1, thread="another"),
    ],
    ids=["with a history", "of a branch", "placed elsewhere"],
)
def test_what_the_store_may_have_completed_is_loaded(first: Run) -> None:
    assert held(first).get("t", 1) is None


def test_no_more_is_held_than_fits() -> None:
    traces = LiveTraces(most=3 * weight_of(run(1)))
    for number in range(9):
        traces.add(f"t{number}", run(number, thread=f"t{number}"))
    assert [number for number in range(9) if traces.get(f"t{number}", 1) is not None] == [6, 7, 8]


def test_what_runs_share_is_counted_once() -> None:
    long = tuple(Message.of("user", "x" * 1000) for _ in range(10))
    first = run(1, calls=(ModelCall(span_id="a", input=long),))
    second = run(2, calls=(ModelCall(span_id="b", input=(*long, *run(1).messages)),))
    assert weight_of(first) > 10_000
    assert weight_of(second, first) < 2_000
    assert weight_of(second) > 10_000


def test_a_run_without_a_thread_is_held_until_it_is_scored() -> None:
    traces = LiveTraces()
    for thread in (None, "t"):
        one = run(1, thread=thread)
        traces.add(one.trace_id, one)
        scored = traces.get(one.trace_id, 1)
        assert scored is not None
        traces.release(scored)
        assert (traces.get(one.trace_id, 1) is None) == (thread is None)


def test_a_run_that_came_while_its_trace_was_scored_is_held() -> None:
    traces = LiveTraces()
    first = run(1, thread=None)
    traces.add(first.id, first)
    scored = traces.get(first.id, 1)
    assert scored is not None
    traces.add(first.id, run(2, thread=None, trace=first.id, history=first.messages))
    traces.release(scored)
    assert traces.get(first.id, 2) is not None


SEEN: list[int | None] = []


def looks(view: View) -> bool:
    SEEN.append(view.turn)
    return view.called("look")


CHECKS = Checklist(
    Item("looks", check=looks),
    Item("replied", check={"replied": True}),
    Item("asked", check={"called": "look", "with": {"key": {"from": "user"}}}, turn="trace"),
    Item("few", check={"at_most": 3}, turn="trace"),
    name="watched",
)


def turn_run(number: int, **changes: Any) -> Run:
    call = ToolCall(id=str(number), name="look", arguments={"key": str(number)})
    answer = Message(role="tool", parts=(ToolCallResponse(id=str(number), response="1"),))
    asks = Message.of("user", f"What is {number}?")
    own = (asks, Message.of("assistant", "", [call]), answer, Message.of("assistant", "It is 1"))
    return run(number, messages=own, **changes)


def test_a_thread_is_scored_as_its_stored_trace_is(tmp_path: Path) -> None:
    """Another process adds a run in between: the trace is loaded then, and grows again after it."""
    SEEN.clear()
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    asked = []
    with SQLStore(url) as store, SQLStore(url) as elsewhere:
        store.save_checklist(CHECKS)
        live = live_to(store, ChecklistScorer(CHECKS, incremental=True))
        for number in (1, 2, 3, 5, 6):
            if number == 5:
                elsewhere.save_run(turn_run(4))
            live.submit(turn_run(number))
            assert live.flush(300)
            asked.append(list(SEEN))
            trace, score = elsewhere.trace("t"), elsewhere.score("t")
            assert trace is not None
            assert score is not None
            plain = ChecklistScorer(CHECKS).score_sync(trace)
            assert replace(score, usage={}) == replace(plain, usage={})
            SEEN.clear()
    assert asked == [[0], [1], [2], [0, 1, 2, 3, 4], [5]]


def test_a_dialogue_that_its_client_sends_again_is_scored_as_its_stored_trace_is(tmp_path: Path) -> None:
    said: tuple[Message, ...] = ()
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store:
        store.save_checklist(CHECKS)
        live = live_to(store, ChecklistScorer(CHECKS, incremental=True))
        for number in range(4):
            one = turn_run(number, thread=None, history=said)
            said = (*said, *one.messages)
            live.submit(one)
            assert live.flush(300)
            trace, score = store.trace("0"), store.score("0")
            assert trace is not None
            assert score is not None
            assert score.runs == number + 1
            plain = ChecklistScorer(CHECKS).score_sync(trace)
            assert replace(score, usage={}) == replace(plain, usage={})


def test_outcomes_that_came_later_are_loaded(tmp_path: Path) -> None:
    seen = []
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store:
        live = live_to(store, sinks=[lambda trace, score: seen.append(dict(trace.outcomes))])
        for number in range(2):
            live.submit(turn_run(number))
            assert live.flush(300)
            store.save_outcome("t", "solved", 1.0)
    assert seen == [{}, {"solved": 1.0}]


def test_a_watched_conversation_is_checked_turn_by_turn(tmp_path: Path) -> None:
    SEEN.clear()
    model = ScriptedModel(script=[calls(1), AIMessage(content="it is value 1")], per_turn=True)
    graph = watch(agent(model, checkpointer=InMemorySaver()), CHECKS, store=f"sqlite:///{tmp_path / 'cm2.db'}")
    for _ in range(4):
        graph.invoke({"messages": [("user", "what is 1?")]}, {"configurable": {"thread_id": "t"}})
        assert flush(300)
    assert SEEN == [0, 1, 2, 3]
