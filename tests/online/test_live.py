"""Live runs: stored and scored in the background, whatever fails, and nothing comes back to the caller."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import ConflictError, StoreError, TraceError
from cm2_agent.online.run_queue import BATCH
from cm2_agent.spool.files import Spool
from cm2_agent.store import SQLStore
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.online.stores import Failing, Length, Memory, live_to, run


def test_live_scores_the_whole_trace_after_each_of_its_runs() -> None:
    store, scorer = Memory(), Length()
    received: list[tuple[int, float | None]] = []
    live = live_to(
        store, scorer, sinks=[lambda trace, score: received.append((len(trace.runs), score and score.reward))]
    )
    for name in "abc":
        live.submit(run(name, "T"))
        assert live.flush(300)
    assert received == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert store.scores["T"].runs == 3
    live.submit(run("d", "other"))
    assert live.flush(300)
    assert store.scores["other"].runs == 1
    assert live.middleware.incidents.counts == {}


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
    live = live_to(store, scorer)
    live.submit(run("0", "T"))
    started.wait()
    for number in range(1, 20):
        live.submit(run(str(number), "T"))
    while len(store.runs) < 20:  # saving does not wait for scoring
        assert not live.flush(0.001)
    scorer.loop.call_soon_threadsafe(scorer.go.set)
    assert live.flush(300)
    assert scorer.seen[-1] == 20
    assert len(scorer.seen) == 2
    assert store.scores["T"].reward == 20.0


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ConflictError("other content"), TraceError("no run")])
def test_a_run_that_the_store_refuses_costs_itself_alone(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    @dataclass
    class Picky(Memory):
        def save_run(self, run: Run) -> None:
            if run.id in "ab":
                raise error
            super().save_run(run)

    store = Picky()
    live = live_to(store, Length())
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        for name in "abc":
            live.submit(run(name))
        assert not live.flush(300)
    assert len(caplog.records) == 1
    assert list(store.runs) == ["c"]
    assert store.incidents == {"a run was not saved": 2}
    assert live.flush(300)


def test_the_saver_waits_for_a_store_that_is_away_and_loses_nothing() -> None:
    @dataclass
    class Away(Memory):
        tries: int = 0

        def save_run(self, run: Run) -> None:
            self.tries += 1
            if self.tries < 5:
                raise OSError("no route to host")
            super().save_run(run)

    store = Away()
    live = live_to(store)
    live.submit(run("a"))
    live.submit(run("b"))
    assert live.flush(300)
    assert list(store.runs) == ["a", "b"]
    assert store.incidents == {"the store is away, and runs wait for it": 1}


def test_runs_that_the_spool_has_gather_until_they_are_a_batch_or_somebody_waits(tmp_path: Path) -> None:
    store = Memory()
    spool = Spool(tmp_path / "spool", lambda: {"store": "s", "project": "default"})
    live = live_to(store, spool=spool, linger=3600)
    live.submit(run("first"))
    assert live.flush(300)
    live.submit(run("second"))
    assert live.saver.queue.waiting == 1
    assert live.flush(300)
    for number in range(BATCH):
        live.submit(run(str(number)))
    while live.saver.queue.waiting:
        time.sleep(0.01)
    assert len(store.runs) == BATCH + 2


def test_runs_that_wait_in_memory_alone_do_not_wait_long() -> None:
    store = Memory()
    live = live_to(store, linger=3600)
    for name in ("first", "second"):
        live.submit(run(name))
        while name not in store.runs:
            time.sleep(0.01)
    assert list(store.runs) == ["first", "second"]


def test_flush_answers_while_a_store_is_away() -> None:
    store = Memory(broken=StoreError("database is locked"))
    live = live_to(store)
    live.submit(run("a"))
    assert not live.flush(0.01)
    assert live.saver.queue.waiting == 1
    store.broken = None
    assert live.flush(300)
    assert live.saver.queue.waiting == 0


def test_a_run_that_fails_for_no_clear_reason_is_put_aside_once_others_are_saved() -> None:
    @dataclass
    class Odd(Memory):
        def save_run(self, run: Run) -> None:
            if run.id == "a":
                raise StoreError("a limit that nobody knows")
            super().save_run(run)

    store = Odd()
    live = live_to(store)
    live.submit(run("a"))
    live.submit(run("b"))
    assert not live.flush(300)
    assert list(store.runs) == ["b"]
    assert store.incidents["a run was not saved"] == 1


def test_a_check_that_ends_the_interpreter_ends_only_its_own_score() -> None:
    class Exits(Length):
        async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
            if trace.id == "a":
                raise SystemExit(3)
            return await super().__call__(trace, task)

    store = Memory()
    live = live_to(store, Exits())
    live.submit(run("a"))
    live.submit(run("b"))
    assert live.flush(300)
    assert list(store.runs) == ["a", "b"]
    assert list(store.scores) == ["b"]


def test_live_a_failing_scorer_is_counted() -> None:
    store = Memory()
    live = live_to(store, Failing())
    live.submit(run("a"))
    assert live.flush(300)
    assert list(store.runs) == ["a"]
    assert store.scores == {}
    assert store.incidents == {"a trace was not scored": 1}


def test_a_run_that_is_nested_too_deeply_costs_itself_alone(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store:
        live = live_to(store, spool=Spool(tmp_path / "spool", lambda: {"store": "s", "project": "default"}))
        for one in (run("before"), replace(run("deep"), input=deep), run("after")):
            live.submit(one)
        assert not live.flush(300), "one was refused"
        assert {trace.id for trace in store.traces()} == {"before", "after"}
    (line,) = (tmp_path / "spool" / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["run"]["id"] == "deep"


def test_live_a_full_queue_drops_and_never_blocks() -> None:
    go = threading.Event()

    @dataclass
    class Stuck(Memory):
        def save_run(self, run: Run) -> None:
            go.wait()
            super().save_run(run)

    store = Stuck()
    live = live_to(store, size=5)
    for number in range(50):
        live.submit(run(str(number)))
    go.set()
    assert not live.flush(300)
    assert len(store.runs) == 5
    assert store.incidents == {"dropped: more than 5 runs or 64 MB were waiting": 45}
    live.submit(run("later"))
    assert live.flush(300)


def test_live_from_many_threads() -> None:
    store = Memory()
    live = live_to(store, Length())

    def some(thread: int) -> None:
        for number in range(100):
            live.submit(run(f"{thread}-{number}", f"T{number}"))

    threads = [threading.Thread(target=some, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert live.flush(300)
    assert len(store.runs) == 800
    assert {score.runs for score in store.scores.values()} == {8}
    assert len(store.scores) == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_live_works_in_a_forked_child(tmp_path: Any) -> None:
    store = Memory()
    live = live_to(store, Length())
    live.submit(run("parent"))
    assert live.flush(300)
    child = os.fork()
    if child == 0:
        live.submit(run("child"))
        done = live.flush(300) and set(store.runs) == {"parent", "child"} and "child" in store.scores
        os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_more_than_so_many_traces_wait_for_their_score() -> None:
    store, held = Memory(), threading.Event()

    class Slow:
        version = "slow"

        async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
            await asyncio.to_thread(held.wait)
            return Score(trace_id=trace.id, reward_version="slow", reward=1.0, runs=len(trace.runs))

    live = live_to(store, Slow(), size=2, slots=1)
    for number in range(6):  # the first is being scored, the next two wait; the third again, which costs no place
        name = f"r{number}"
        live.submit(run(name, thread="T2" if number in (2, 5) else f"T{number}"))
        while name not in store.runs:
            held.wait(0.005)
    held.set()
    assert live.flush(300)
    assert {trace_id: score.runs for trace_id, score in store.scores.items()} == {"T0": 1, "T1": 1, "T2": 2}
    assert live.middleware.incidents.counts == {"dropped: more than 2 traces were waiting to be scored": 2}
    assert len(store.runs) == 6
