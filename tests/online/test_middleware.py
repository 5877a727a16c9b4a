"""The path of a finished trace: what is saved, scored and sent to the sinks."""

from __future__ import annotations

import logging

import pytest

from cm2_agent.errors import StoreError
from cm2_agent.online.middleware import Middleware
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from tests.online.stores import Failing, Length, Memory, run


async def test_a_finished_dialogue_is_saved_scored_and_sent_to_the_sinks() -> None:
    store, received = Memory(), []

    async def later(trace: Trace, score: Score | None) -> None:
        received.append((trace.id, score))

    trace, score = await Middleware(
        store, Length(), sinks=[later, lambda trace, score: received.append((trace.id, score))]
    ).process([run("a", "T"), run("b", "T")])
    assert (trace.id, [each.id for each in trace.runs]) == ("T", ["a", "b"])
    assert score is not None
    assert score.reward == 2.0
    assert list(store.runs) == ["a", "b"]
    assert store.scores == {"T": score}
    assert received == [("T", score)] * 2


async def test_a_score_from_the_caller_is_taken_as_it_is() -> None:
    store, scorer = Memory(), Length()
    given = Score(trace_id="a", reward_version="gate", reward=0.25)
    assert (await Middleware(store, scorer).process([run("a")], score=given))[1] is given
    assert store.scores == {"a": given}
    assert scorer.seen == []


async def test_a_failing_scorer_loses_no_run() -> None:
    store = Memory()
    with pytest.raises(RuntimeError, match="no idea"):
        await Middleware(store, Failing()).process([run("a")])
    assert list(store.runs) == ["a"]


async def test_a_failing_sink_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    received: list[str] = []

    def broken(trace: Trace, score: Score | None) -> None:
        raise OSError("pager down")

    middleware = Middleware(None, sinks=[broken, lambda trace, score: received.append(trace.id)])
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        await middleware.process([run("a")])
        await middleware.process([run("b")])
    assert received == ["a", "b"]
    assert middleware.incidents.counts == {"a sink failed: broken": 2}
    assert len(caplog.records) == 1


async def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(StoreError, match="outcomes"):
        await Middleware(Memory()).process([run("a")], outcomes={"success": 1.0})
    with pytest.raises(StoreError, match="no runs"):
        await Middleware(Memory()).process([])
