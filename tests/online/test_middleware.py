"""The path of a finished trace: what is saved, scored and told, and that nothing live ever comes back to the caller."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.incidents import Incidents
from cm2_agent.online.middleware import Live, Middleware
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.messages import Message
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Run, Trace


def run(name: str, thread: str | None = None, text: str = "hi") -> Run:
    return Run(id=name, thread=thread, messages=(Message.of("user", text), Message.of("assistant", "hello")))


@dataclass
class Memory:
    """The smallest store: dictionaries. `broken` is raised by every write while it is set."""

    runs: dict[str, Run] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    incidents: dict[str, int] = field(default_factory=dict)
    broken: Exception | None = None

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def save_run(self, run: Run) -> None:
        self._check()
        self.runs[run.id] = run

    def save_task(self, task: Task) -> None:
        raise NotImplementedError

    def save_checklist(self, checklist: Checklist) -> str:
        return checklist.hash

    def save_score(self, score: Score) -> None:
        self._check()
        self.scores[score.trace_id] = score

    def trace(self, trace_id: str) -> Trace | None:
        self._check()
        runs = tuple(run for run in self.runs.values() if run.trace_id == trace_id)
        return Trace(id=trace_id, runs=runs) if runs else None

    def traces(self) -> Iterator[Trace]:
        return (trace for key in {run.trace_id for run in self.runs.values()} if (trace := self.trace(key)) is not None)

    def count_incident(self, kind: str, detail: str = "", n: int = 1) -> None:
        self._check()
        self.incidents[kind] = self.incidents.get(kind, 0) + n


class Length:
    """Scores a trace by its number of steps."""

    version = "length:1"

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        self.seen.append(len(trace.runs))
        return Score(
            trace_id=trace.id, reward_version=self.version, reward=float(len(trace.steps)), runs=len(trace.runs)
        )


class Failing(Length):
    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        raise RuntimeError("no idea")


async def test_a_finished_dialogue_is_saved_scored_and_told() -> None:
    store, told = Memory(), []

    async def later(trace: Trace, score: Score | None) -> None:
        told.append((trace.id, score))

    trace, score = await Middleware(
        store, Length(), sinks=[later, lambda trace, score: told.append((trace.id, score))]
    ).process([run("a", "T"), run("b", "T")])
    assert (trace.id, [each.id for each in trace.runs]) == ("T", ["a", "b"])
    assert score is not None
    assert score.reward == 2.0
    assert list(store.runs) == ["a", "b"]
    assert store.scores == {"T": score}
    assert told == [("T", score)] * 2


async def test_a_given_score_is_kept() -> None:
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
    told: list[str] = []

    def broken(trace: Trace, score: Score | None) -> None:
        raise OSError("pager down")

    middleware = Middleware(None, sinks=[broken, lambda trace, score: told.append(trace.id)])
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        await middleware.process([run("a")])
        await middleware.process([run("b")])
    assert told == ["a", "b"]
    assert middleware.incidents.counts == {"a sink failed: broken": 2}
    assert len(caplog.records) == 1


async def test_what_cannot_be_kept_is_said() -> None:
    with pytest.raises(StoreError, match="outcomes"):
        await Middleware(Memory()).process([run("a")], outcomes={"success": 1.0})
    with pytest.raises(StoreError, match="no runs"):
        await Middleware(Memory()).process([])
    with pytest.raises(StoreError, match="expected a middleware with a store"):
        Live(Middleware(None))


def test_live_scores_the_whole_trace_after_each_of_its_runs() -> None:
    store, scorer = Memory(), Length()
    told: list[tuple[int, float | None]] = []
    live = Live(
        Middleware(store, scorer, sinks=[lambda trace, score: told.append((len(trace.runs), score and score.reward))])
    )
    for name in "abc":
        live.submit(run(name, "T"))
        assert live.flush(10)
    assert told == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert store.scores["T"].runs == 3
    live.submit(run("d", "other"))
    assert live.flush(10)
    assert store.scores["other"].runs == 1
    assert live.incidents.counts == {}


def test_live_scores_once_for_all_the_runs_that_came_meanwhile() -> None:
    class Slow(Length):
        async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
            score = await super().__call__(trace, task)
            self.loop, self.go = asyncio.get_running_loop(), asyncio.Event()
            if len(self.seen) == 1:
                started.set()
                await self.go.wait()
            return score

    started = threading.Event()
    store, scorer = Memory(), Slow()
    live = Live(Middleware(store, scorer))
    for number in range(20):
        live.submit(run(str(number), "T"))
    started.wait()
    while len(store.runs) < 20:  # saving does not wait for scoring
        assert not live.flush(0.001)
    scorer.loop.call_soon_threadsafe(scorer.go.set)
    assert live.flush(10)
    assert scorer.seen[-1] == 20
    assert len(scorer.seen) == 2
    assert store.scores["T"].reward == 20.0


@pytest.mark.parametrize(
    "error", [StoreError("database is locked"), RuntimeError("a bug"), ConflictError("other content")]
)
def test_live_a_failing_store_is_counted_and_told_when_it_is_back(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    store = Memory(broken=error)
    live = Live(Middleware(store, Length()))
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        live.submit(run("a"))
        live.submit(run("b"))
        assert live.flush(20)
    assert live.incidents.counts == {"a run was not saved": 2}
    assert len(caplog.records) == 1
    assert store.runs == {}
    assert store.incidents == {}
    store.broken = None
    live.submit(run("c"))
    assert live.flush(10)
    assert list(store.runs) == ["c"]
    assert store.incidents == {"a run was not saved": 2}
    assert store.scores["c"].reward == 1.0


def test_live_a_store_that_is_back_in_time_loses_nothing() -> None:
    @dataclass
    class Flaky(Memory):
        tries: int = 0

        def save_run(self, run: Run) -> None:
            self.tries += 1
            if self.tries < 3:
                raise StoreError("database is locked")
            super().save_run(run)

    store = Flaky()
    live = Live(Middleware(store))
    live.submit(run("a"))
    assert live.flush(10)
    assert (list(store.runs), store.tries, live.incidents.counts) == (["a"], 3, {})


def test_live_a_failing_scorer_is_counted() -> None:
    store = Memory()
    live = Live(Middleware(store, Failing()))
    live.submit(run("a"))
    assert live.flush(10)
    assert list(store.runs) == ["a"]
    assert store.scores == {}
    assert store.incidents == {"a trace was not scored": 1}


def test_live_a_full_queue_drops_and_never_blocks() -> None:
    go = threading.Event()

    @dataclass
    class Stuck(Memory):
        def save_run(self, run: Run) -> None:
            go.wait()
            super().save_run(run)

    store = Stuck()
    live = Live(Middleware(store), size=5)
    for number in range(50):
        live.submit(run(str(number)))
    dropped = live.incidents.counts["dropped: more than 5 runs were waiting"]
    go.set()
    assert live.flush(10)
    assert 44 <= dropped <= 45  # one may have been taken up before the queue was full
    assert len(store.runs) == 50 - dropped
    live.submit(run("later"))
    assert live.flush(10)
    assert store.incidents == {"dropped: more than 5 runs were waiting": dropped}


def test_live_from_many_threads() -> None:
    store = Memory()
    live = Live(Middleware(store, Length()))

    def some(thread: int) -> None:
        for number in range(100):
            live.submit(run(f"{thread}-{number}", f"T{number}"))

    threads = [threading.Thread(target=some, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert live.flush(30)
    assert len(store.runs) == 800
    assert {score.runs for score in store.scores.values()} == {8}
    assert len(store.scores) == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_live_works_in_a_forked_child(tmp_path: Any) -> None:
    store = Memory()
    live = Live(Middleware(store, Length()))
    live.submit(run("parent"))
    assert live.flush(10)
    child = os.fork()
    if child == 0:
        live.submit(run("child"))
        done = live.flush(10) and set(store.runs) == {"parent", "child"} and "child" in store.scores
        os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_incidents_are_logged_once_and_drained_once(caplog: pytest.LogCaptureFixture) -> None:
    incidents = Incidents()
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        for _ in range(3):
            incidents.add("kind", ValueError("why"))
        incidents.add("other")
    assert len(caplog.records) == 2
    assert incidents.drain() == {"kind": (3, "ValueError: why"), "other": (1, "")}
    assert not incidents.pending
    incidents.restore({"kind": (3, "ValueError: why")})
    incidents.add("kind")
    assert incidents.drain() == {"kind": (4, "")}
    assert incidents.counts == {"kind": 4, "other": 1}


def test_no_more_than_so_many_traces_wait_for_their_score() -> None:
    store, held = Memory(), threading.Event()

    class Slow:
        version = "slow"

        async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
            await asyncio.to_thread(held.wait)
            return Score(trace_id=trace.id, reward_version="slow", reward=1.0, runs=len(trace.runs))

    live = Live(Middleware(store, Slow()), size=2, scoring=1)
    for number in range(6):  # the first is being scored, the next two wait; the third again, which costs no place
        name = f"r{number}"
        live.submit(run(name, thread="T2" if number in (2, 5) else f"T{number}"))
        while name not in store.runs:
            held.wait(0.005)
    held.set()
    assert live.flush(30)
    assert {trace_id: score.runs for trace_id, score in store.scores.items()} == {"T0": 1, "T1": 1, "T2": 2}
    assert live.incidents.counts == {"dropped: more than 2 traces were waiting to be scored": 2}
    assert len(store.runs) == 6
