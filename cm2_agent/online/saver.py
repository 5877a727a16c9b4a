"""The saver: one thread for each store and process that writes finished runs, many in one transaction."""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from cm2_agent.errors import TraceError
from cm2_agent.incidents import Incidents
from cm2_agent.online.forks import survive_forks
from cm2_agent.online.run_record import encode_run
from cm2_agent.online.run_writer import RunWriter
from cm2_agent.online.spool import UNSCORED, Place, Spool
from cm2_agent.online.spool_replay import join_key, split_key
from cm2_agent.types.protocols import Store
from cm2_agent.types.run import Run

__all__ = ["Saver", "Watched"]

_BATCH, _BATCH_BYTES = 256, 8 << 20
_LINGER = 0.1
"""Seconds for which the saver lets runs gather, so that they share a transaction; the spool has them already."""
_IDLE = 30.0
"""Seconds without runs after which the thread ends; the next run starts another."""
_PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between tries of a store that takes nothing."""


class Watched(Protocol):
    """Whose runs are saved: told when the store is open, and which traces have new runs."""

    key: str | None

    def opened(self, store: Store) -> None: ...

    def saved(self, trace_ids: Iterable[str]) -> None: ...


class _Entry(NamedTuple):
    number: int
    watched: Watched | None
    """None: no run, but the wish to save what dead processes left."""
    run: Run | None
    """None: in the spool alone."""
    place: Place | None
    size: int


class Saver:
    """Takes runs from any thread (`submit`), writes each to the spool at once, and saves them in a thread of its own.

    While the store takes nothing (a locked file, a server that restarts, a full disk) the saver waits at the head of
    its queue, for as long as it takes. Runs beyond `size` or `held` bytes wait in the spool alone; without a spool they
    are dropped and counted. A run that the store refuses costs itself alone: it goes to the file `refused.jsonl` of the
    spool's folder. `open_store` is called in the saver's thread, in a forked child again; `on_start` when the thread is
    started."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        incidents: Incidents,
        *,
        spool: Spool | None = None,
        size: int = 10_000,
        held: int = 64 << 20,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.incidents = incidents
        self.spool = spool
        self.pid = os.getpid()
        self._writer = RunWriter(open_store, incidents, spool)
        self._size, self._limit = size, held
        self._on_start = on_start
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._forget()
        survive_forks(self)

    def _forget(self) -> None:
        self.lock = threading.Lock()
        self._changed = threading.Condition()
        self._queue: SimpleQueue[_Entry] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hurry, self._kick, self._tried = threading.Event(), threading.Event(), threading.Event()
        self.waiting = 0
        """How many runs are not saved."""
        self._number = self._submitted = self._done = self._held = self._flushes = 0
        self._gone = self._gone_told = 0
        self._moved = time.monotonic()
        self._unscored: list[tuple[str | None, str]] = []
        self._fresh: list[weakref.ref[Any]] = []
        self._tries = 0
        self._away: Exception | None = None

    def in_child(self) -> None:
        """After a fork, in the child: what waits is the parent's, and so are connection and spool."""
        self._writer.forget()
        if self.spool is not None:
            self.spool.leave()
        self._forget()

    @property
    def store(self) -> Store | None:
        """The store, once it is open."""
        return self._writer.store

    # What callers do

    def add(self, watched: Watched, timeout: float | None) -> Exception | None:
        """Save the runs of one more graph. Waits until the store is open and has told `watched` so, at most `timeout`
        seconds, and not after a try that failed; answers why that is not so."""
        with self.lock:
            self._watched.add(watched)
            self._fresh.append(weakref.ref(watched))
            tries = self._tries
            target = self._request()
        if timeout == 0:
            return None
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._done < target and (self._tries == tries or self._away is None):
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return TimeoutError("it has not answered yet")
                self._changed.wait(min(left, 1.0))
        return self._away

    def submit(self, watched: Watched, run: Run) -> None:
        """Hand over a finished run. Returns at once; never raises."""
        try:
            record = join_key(watched.key, encode_run(run))
        except Exception:  # it is not JSON: the store will say what is wrong with it
            record = b""
        failed: OSError | None = None
        with self.lock:
            self._number += 1
            number, place, size = self._number, None, len(record)
            if record and self.spool is not None and self.spool.ready:
                try:
                    place = self.spool.append(number, record)
                except OSError as error:
                    failed = error
            held = self._held + size <= self._limit and self.waiting < self._size
            if held:
                self._held += size
            if held or place is not None:
                self._submitted += 1
                self.waiting += 1
                self._queue.put(_Entry(number, watched, run if held else None, place, size))
                if self._thread is None:
                    self._start()
            else:
                self._gone += 1
        if failed is not None:
            self.incidents.add("a run could not be written to the spool and waits in memory", failed)
        if not held and place is None:
            self.incidents.add(f"dropped: more than {self._size} runs or {self._limit >> 20} MB were waiting")

    def flush(self, deadline: float | None, stalled: float) -> bool:
        """Wait until what was submitted so far is saved, and what dead processes left. False where it is not: the
        deadline (of time.monotonic) has passed, nothing moved for `stalled` seconds, or a run was refused or dropped
        since the last flush."""
        with self.lock:
            self._flushes += 1
            self._hurry.set()
            adopts = self.spool is not None and os.getpid() == self.pid
            target = self._request() if adopts else self._submitted
        self._kick.set()
        try:
            if not self._await(target, deadline, stalled):
                return False
        finally:
            with self.lock:
                self._flushes -= 1
                if not self._flushes:
                    self._hurry.clear()
        with self.lock:
            gone = self._gone + self._writer.refused
            lost, self._gone_told = gone - self._gone_told, gone
        return not lost

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

    def remember(self, unscored: Sequence[tuple[str | None, str]]) -> bool:
        """Note the traces (key, trace id) that are saved and not scored, for the next start. False without a spool."""
        with self.lock:
            if self.spool is None or not self.spool.ready:
                return False
            try:
                self.spool.append(self._number, json.dumps(unscored).encode(), kind=UNSCORED)
            except OSError:
                return False
        return True

    def unscored_of(self, key: str | None) -> list[str]:
        """The traces of this key that an earlier process left without a score; each is handed out once."""
        with self.lock:
            found = [trace_id for known, trace_id in self._unscored if known == key]
            self._unscored = [entry for entry in self._unscored if entry[0] != key]
        return found

    def close(self) -> None:
        """At the end of the process: remove what the spool need not keep."""
        with self.lock:
            if self.spool is not None and self.spool.ready and self._done == self._submitted:
                self.spool.close()

    def _request(self) -> int:
        """Have the thread look after what is new. The caller holds the lock; answers what `_done` then reaches."""
        self._submitted += 1
        self._queue.put(_Entry(self._number, None, None, None, 0))
        self._start()
        return self._submitted

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            try:
                self._on_start()
                self._thread = threading.Thread(target=self._run, name="cm2-saver", daemon=True)
                self._thread.start()
            except RuntimeError:  # the interpreter is ending, and starts no thread any more
                self._thread = None

    # What the thread does

    def _run(self) -> None:
        while True:
            try:
                first = self._queue.get(timeout=_IDLE)
            except Empty:
                with self.lock:
                    if self._queue.empty():
                        self._thread = None
                        return
                continue
            if first.watched is not None and not self._hurry.is_set():
                self._hurry.wait(_LINGER)
            batch, runs = [first], dict[int, Run]()
            try:
                self._save(batch, runs)
            except BaseException as error:  # nothing that goes wrong with one batch may cost the next
                for run in runs.values():
                    self._writer.refuse(run, error)
            self._settle(batch)

    def _save(self, batch: list[_Entry], runs: dict[int, Run]) -> None:
        """Returns when the whole batch is saved or refused; while the store takes nothing, more joins it. `runs` are
        those that are neither yet."""
        pauses = iter(_PAUSES)
        told: dict[Watched, dict[str, None]] = {}
        taken = 0
        while True:
            self._gather(batch)
            self._prepare()
            for entry in batch[taken:]:
                if entry.watched is not None and (run := self._read(entry)) is not None:
                    runs[entry.number] = run
                    told.setdefault(entry.watched, {})[run.trace_id] = None
            taken = len(batch)
            error = self._open() or self._writer.write(runs)
            if error is not None and self._away is None:
                self.incidents.add("the store is away, and runs wait for it", error)
            with self._changed:
                self._away = error
                self._tries += 1
                self._changed.notify_all()
            if error is None:
                break
            self._kick.wait(next(pauses, _PAUSES[-1]))
            self._kick.clear()
        if any(entry.watched is None for entry in batch):
            self._replay()
        for watched, trace_ids in told.items():
            watched.saved(trace_ids)
        self._writer.report()

    def _gather(self, batch: list[_Entry]) -> None:
        size = sum(entry.size for entry in batch)
        while len(batch) < _BATCH and size < _BATCH_BYTES:
            try:
                batch.append(self._queue.get_nowait())
            except Empty:
                return
            size += batch[-1].size

    def _prepare(self) -> None:
        """The spool's folder, which a caller inside an event loop could not make."""
        if self.spool is None or self.spool.ready:
            return
        try:
            with self.lock:
                self.spool.prepare()
        except OSError as error:
            self.incidents.add("there is no spool: its folder cannot be made, and runs wait in memory alone", error)

    def _read(self, entry: _Entry) -> Run | None:
        if entry.run is not None:
            if entry.place is None and self.spool is not None and self.spool.ready:
                self._spool(entry)
            return entry.run
        assert entry.place is not None and self.spool is not None
        try:
            with self.lock:
                record = self.spool.read(entry.place)
            return split_key(record)[1]
        except (OSError, TraceError) as error:
            self.incidents.add("a run could not be read from the spool again", error)
            self._gone += 1
            return None

    def _spool(self, entry: _Entry) -> None:
        """Write a run that ended before the spool was there."""
        assert entry.watched is not None and entry.run is not None and self.spool is not None
        try:
            record = join_key(entry.watched.key, encode_run(entry.run))
            with self.lock:
                self.spool.append(entry.number, record)
        except (OSError, TypeError, ValueError):  # counted when it was submitted, or by the store
            pass

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
        left = {number: run for number, (_, run) in enumerate(runs)}
        if (error := self._writer.write(left)) is not None:
            raise error
        self._score([(key, run.trace_id) for key, run in runs])
        self._moved = time.monotonic()

    def _score(self, traces: Sequence[tuple[str | None, str]]) -> None:
        with self.lock:
            known = {watched.key: watched for watched in self._watched}
            self._unscored += [(key, trace_id) for key, trace_id in traces if key is not None and key not in known]
        for key, trace_id in traces:
            if key in known:
                known[key].saved([trace_id])

    def _settle(self, batch: Sequence[_Entry]) -> None:
        with self.lock:
            self.waiting -= sum(entry.watched is not None for entry in batch)
            self._held -= sum(entry.size for entry in batch if entry.run is not None)
            if self.spool is not None and self.spool.ready:
                try:
                    self.spool.settle(batch[-1].number)
                except OSError as error:  # what is stored is stored again then, which changes nothing
                    self.incidents.add("the spool could not be cut", error)
        with self._changed:
            self._done += len(batch)
            self._moved = time.monotonic()
            self._changed.notify_all()
