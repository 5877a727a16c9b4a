"""The saver: one thread for each store and process that writes finished runs, many in one transaction."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from cm2_agent.incidents import Incidents
from cm2_agent.online.forks import DATABASE, survive_forks
from cm2_agent.online.run_queue import BATCH, Entry, RunQueue, Watched
from cm2_agent.online.run_writer import RunWriter
from cm2_agent.spool.files import Spool
from cm2_agent.types.protocols import Store
from cm2_agent.types.run import Run

__all__ = ["Saver"]

_LINGER, _LINGER_BARE = 1.0, 0.2
"""Seconds from one transaction to the next, for which runs gather: where the spool has them already, and where they
wait in memory alone."""
_IDLE = 30.0
"""Seconds without runs after which the thread ends; the next run starts another."""
_PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between tries of a store that takes nothing."""


class Saver:
    """Takes runs from any thread (`submit`), writes each to the spool at once, and saves them in a thread of its own.

    The first run after a quiet time is saved at once; then runs gather for `linger` seconds (0.2 where only memory has
    them), or until they are a whole batch. While the store takes nothing (a locked file, a server that restarts, a full
    disk) the saver waits at the head of its queue, for as long as it takes. Runs beyond `size` or `held` bytes wait in
    the spool alone; without a spool they are dropped and counted. A run that the store refuses costs itself alone: it
    goes to the file `refused.jsonl` of the spool's folder. `open_store` is called in the saver's thread, in a forked
    child again, and where the file is gone if that `reopens` it; `on_start` when the thread is started. `unscored`
    answers which saved traces, as (key, trace id), have no score yet: the spool says so to the next start."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        incidents: Incidents,
        *,
        spool: Spool | None = None,
        size: int = 10_000,
        held: int = 64 << 20,
        reopens: bool = False,
        linger: float = _LINGER,
        on_start: Callable[[], None] = lambda: None,
        unscored: Callable[[], Sequence[tuple[str | None, str]]] = tuple,
    ) -> None:
        self.incidents = incidents
        self.spool = spool
        self.pid = os.getpid()
        self.queue = RunQueue(incidents, spool, size=size, held=held)
        self._writer = RunWriter(open_store, incidents, spool, reopens=reopens)
        self._linger = linger
        self._on_start, self._unscored_now = on_start, unscored
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._forget()
        survive_forks(self)

    def _forget(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._hurry, self._kick = threading.Event(), threading.Event()
        self._done = self._flushes = self._tries = self._gone_reported = 0
        self._away: Exception | None = None
        self._moved = time.monotonic()
        self._unscored: list[tuple[str | None, str]] = []
        self._fresh: list[weakref.ref[Any]] = []
        self._stopped = False

    def in_child(self) -> None:
        """After a fork, in the child: what waits is the parent's, and so is the connection."""
        self.queue.in_child()
        self._writer.in_child()
        self._forget()

    @property
    def lock(self) -> threading.Lock:
        return self.queue.lock

    @property
    def store(self) -> Store | None:
        """The store, once it is open."""
        return self._writer.store

    # What callers do

    def add(self, watched: Watched, timeout: float | None) -> Exception | None:
        """Save the runs of one more graph. Waits until the store is open and `watched` knows it, at most `timeout`
        seconds, and not after a try that failed; answers why that is not so."""
        with self.lock:
            self._watched.add(watched)
            self._fresh.append(weakref.ref(watched))
            tries = self._tries
            target = self._request()
            if timeout == 0:
                return None
            self._flushes += 1  # whoever waits is not to wait for runs to gather
            self._hurry.set()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            with self._changed:
                while self._done < target and (self._tries == tries or self._away is None):
                    left = 1.0 if deadline is None else deadline - time.monotonic()
                    if left <= 0:
                        return TimeoutError("it has not answered yet")
                    self._changed.wait(min(left, 1.0))
            return self._away
        finally:
            with self.lock:
                self._flushes -= 1
                self._calm()

    def submit(self, watched: Watched, run: Run) -> None:
        """Hand over a finished run. Returns at once; never raises."""
        self.queue.put(watched, run)
        if self.queue.waiting >= BATCH and not self._hurry.is_set():
            self._hurry.set()
        if self._thread is None:
            with self.lock:
                self._start()

    def flush(self, deadline: float | None, stalled: float) -> bool:
        """Wait until what was submitted so far is saved, and what dead processes left. False where it is not: the
        deadline (of time.monotonic) has passed, nothing moved for `stalled` seconds, or a run was refused or dropped
        since the last flush."""
        with self.lock:
            self._flushes += 1
            self._hurry.set()
            adopts = self.spool is not None and os.getpid() == self.pid and (self.queue.waiting or self._away is None)
            target = self._request() if adopts else self.queue.submitted if self.queue.waiting else 0
        self._kick.set()
        try:
            if not self._await(target, deadline, stalled):
                return False
        finally:
            with self.lock:
                self._flushes -= 1
                self._calm()
        with self.lock:
            gone = self.queue.dropped + self._writer.refused
            lost, self._gone_reported = gone - self._gone_reported, gone
        return not lost

    def _calm(self) -> None:
        """The caller holds the lock."""
        if not self._flushes and self.queue.waiting < BATCH:
            self._hurry.clear()

    def _await(self, target: int, deadline: float | None, stalled: float) -> bool:
        began = time.monotonic()
        with self._changed:
            while self._done < target:
                now = time.monotonic()
                left = 1.0 if deadline is None else min(1.0, deadline - now)
                if left <= 0 or now - max(began, self._moved) > stalled:
                    return False
                if self._thread is None or not self._thread.is_alive():
                    with self.lock:
                        self._start()
                    if self._thread is None:
                        return False
                self._changed.wait(left)
        return True

    def unscored_of(self, key: str | None) -> list[str]:
        """The traces of this key that an earlier process left without a score; each is handed out once."""
        with self.lock:
            found = [trace_id for known, trace_id in self._unscored if known == key]
            self._unscored = [entry for entry in self._unscored if entry[0] != key]
        return found

    def stop(self) -> None:
        """End the thread: nobody uses the store after all."""
        self._stopped = True
        self._kick.set()
        self.queue.close()

    def _request(self) -> int:
        """Have the thread look after what is new. The caller holds the lock; answers what `_done` then reaches."""
        target = self.queue.request()
        self._start()
        return target

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            if sys.is_finalizing():  # a thread that is started now never begins, and its start never returns
                return
            try:
                self._on_start()
                self._thread = threading.Thread(target=self._run, name="cm2-saver", daemon=True)
                self._thread.start()
            except RuntimeError:  # the interpreter is ending, and starts no thread any more
                self._thread = None

    # What the thread does

    def _run(self) -> None:
        while True:
            first = self.queue.get(_IDLE)
            if first is None:
                with self.lock:
                    if self.queue.empty():
                        self._thread = None
                        return
                continue
            if first.watched is not None:
                linger = min(self._linger, _LINGER_BARE) if first.place is None else self._linger
                self._hurry.wait(max(0.0, self._moved + linger - time.monotonic()))
            batch, runs = [first], dict[int, Run]()
            try:
                self._save(batch, runs)
            except BaseException as error:  # nothing that goes wrong with one batch may cost the next
                for run in runs.values():
                    self._writer.refuse(run, error)
            if self._stopped:
                return  # what is not saved stays in the spool
            self._settle(batch)

    def _save(self, batch: list[Entry], runs: dict[int, Run]) -> None:
        """Returns when the whole batch is saved or refused; while the store takes nothing, more joins it. `runs` are
        those that are neither yet."""
        pauses = iter(_PAUSES)
        new: dict[Watched, dict[str, Run]] = {}
        taken = 0
        while True:
            self.queue.gather(batch)
            self.queue.prepare()
            for entry in batch[taken:]:
                if entry.watched is not None and (run := self.queue.read(entry)) is not None:
                    runs[entry.number] = run
                    new.setdefault(entry.watched, {})[run.id] = run
            taken = len(batch)
            if runs:
                self._writer.check_file()
            error = self._open() or self._writer.write(runs)
            if error is not None and self._away is None:
                self.incidents.add("the store is away, and runs wait for it", error)
            with self._changed:
                self._away = error
                self._tries += 1
                self._changed.notify_all()
            if error is None or self._stopped:
                break
            self._kick.wait(next(pauses, _PAUSES[-1]))
            self._kick.clear()
        if any(entry.watched is None for entry in batch):
            self._replay()
        for watched, saved in new.items():
            by_trace: dict[str, list[Run]] = {}
            for run_id, trace_id in self._writer.traces_of({run.id: run.trace_id for run in saved.values()}).items():
                by_trace.setdefault(trace_id, []).append(saved[run_id])
            watched.saved(by_trace)
        self._writer.report()

    def _open(self) -> Exception | None:
        """Open the store, and let every graph know; answers why that is not so."""
        opening = self._writer.store is None
        if not self._writer.open():
            return self._writer.failure
        with self.lock:
            if opening:
                self._fresh = [weakref.ref(watched) for watched in self._watched]
            fresh, self._fresh = self._fresh, []
        store = self._writer.store
        assert store is not None
        for number, ref in enumerate(fresh):
            try:
                if (watched := ref()) is not None:
                    with DATABASE:
                        watched.opened(store)
            except Exception as error:
                with self.lock:
                    self._fresh = [*fresh[number:], *self._fresh]
                return error
        if opening:
            self._replay()
        return None

    def _replay(self) -> None:
        found = self._writer.replay(self._adopt)
        self._score(found.unscored)

    def _adopt(self, runs: Sequence[tuple[str | None, Run]]) -> None:
        """Save runs of a dead process. Raises what the store raises when it is away: the files stay then."""
        self._writer.write_all([run for _, run in runs])
        traces = self._writer.traces_of({run.id: run.trace_id for _, run in runs})
        self._score([(key, traces[run.id]) for key, run in runs])
        self._moved = time.monotonic()

    def _score(self, traces: Sequence[tuple[str | None, str]]) -> None:
        with self.lock:
            known = {watched.key: watched for watched in self._watched}
            self._unscored += [(key, trace_id) for key, trace_id in traces if key is not None and key not in known]
        for key, trace_id in traces:
            if key in known:
                known[key].saved({trace_id: ()})

    def _settle(self, batch: Sequence[Entry]) -> None:
        self.queue.settle(batch, self._unscored_now())
        with self.lock:
            self._calm()
        with self._changed:
            self._done += len(batch)
            self._moved = time.monotonic()
            self._changed.notify_all()
