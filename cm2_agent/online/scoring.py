"""The scoring path: a thread with an event loop that scores saved traces, beside the saver and never before it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from cm2_agent.incidents import Incidents
from cm2_agent.online.forks import DATABASE, survive_forks
from cm2_agent.online.incident_counts import store_incidents
from cm2_agent.online.live_traces import LiveTraces
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.save_errors import meaning_of
from cm2_agent.types.protocols import Store
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

__all__ = ["Scored", "ScoringPath"]

_PAUSE = 1.0
"""Seconds until a store that is away is tried again."""


class Scored(Protocol):
    """Whose traces are scored: `middleware` holds store, scorer and sinks."""

    key: str | None
    middleware: Middleware


class _Key(NamedTuple):
    watched: Scored
    trace_id: str


class _Finished(NamedTuple):
    key: _Key
    trace: Trace
    score: Score | None


class ScoringPath:
    """Loads each trace that has new runs, scores it, stores the score and calls the sinks.

    At most `slots` traces are scored at a time, each once for all the runs that came meanwhile; scores that are ready
    at the same time share a transaction. As many as `size` traces may wait; further ones are counted and stay without a
    score, until `cm2 score` or their next run. A trace waits while the store is away. What raises (SystemExit too)
    costs its own trace."""

    def __init__(self, incidents: Incidents, *, size: int = 10_000, slots: int = 64) -> None:
        self.incidents = incidents
        self._size, self._slots = size, slots
        self.traces = LiveTraces()
        self.in_child()
        survive_forks(self)

    def in_child(self) -> None:
        """Begin afresh; after a fork what waits is the parent's."""
        self.traces.forget()
        self.lock = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: dict[_Key, int] = {}
        self._busy: dict[_Key, int] = {}
        self._ticket = 0
        self._moved = time.monotonic()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._awake = False
        self._finished: list[_Finished] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused = False

    def submit(self, watched: Scored, trace_ids: Iterable[str]) -> None:
        """Score these traces of a graph, from any thread."""
        full = 0
        with self.lock:
            for trace_id in trace_ids:
                key = _Key(watched, trace_id)
                if key in self._waiting:
                    continue
                if len(self._waiting) >= self._size:
                    full += 1
                    continue
                self._ticket += 1
                self._waiting[key] = self._ticket
            self._start()
            if self._loop is not None and self._wake is not None and not self._awake:
                self._awake = True
                self._loop.call_soon_threadsafe(self._wake.set)
        if full:
            self.incidents.add(f"dropped: more than {self._size} traces were waiting to be scored", number=full)

    def flush(self, deadline: float | None, stalled: float) -> bool:
        """Wait until what was submitted so far is scored; False where the deadline (of time.monotonic) passed, or
        nothing moved for `stalled` seconds."""
        began = time.monotonic()
        with self.lock:
            target = self._ticket
        with self._changed:
            while self._oldest() <= target:
                now = time.monotonic()
                left = 1.0 if deadline is None else min(1.0, deadline - now)
                if left <= 0 or now - max(began, self._moved) > stalled:
                    return False
                with self.lock:
                    self._start()
                if self._thread is None:
                    return False
                self._changed.wait(left)
        return True

    def _oldest(self) -> float:
        with self.lock:
            return min(itertools.chain(self._waiting.values(), self._busy.values()), default=float("inf"))

    @property
    def unscored(self) -> list[tuple[str | None, str]]:
        """The traces that are saved and have no score yet, as (key, trace id)."""
        with self.lock:
            return [(key.watched.key, key.trace_id) for key in dict.fromkeys((*self._waiting, *self._busy))]

    def _start(self) -> None:
        """The caller holds the lock."""
        if not self._waiting or (self._thread is not None and self._thread.is_alive()):
            return
        self._waiting, self._busy = {**self._busy, **self._waiting}, {}
        self._loop = self._wake = None
        self._awake = True
        try:
            self._thread = threading.Thread(target=self._run, name="cm2-scoring", daemon=True)
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, and starts no thread any more
            self._thread = None

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        wake = asyncio.Event()
        wake.set()
        with self.lock:
            self._loop, self._wake = asyncio.get_running_loop(), wake
        while True:
            await wake.wait()
            with self.lock:
                wake.clear()
                self._awake = False
            self._launch()

    def _launch(self) -> None:
        """Start as many of the waiting traces as there are slots."""
        if self._paused:
            return
        with self.lock:
            free = [key for key in itertools.islice(self._waiting, self._slots * 4) if key not in self._busy]
            chosen = free[: self._slots - len(self._busy)]
            for key in chosen:
                self._busy[key] = self._waiting.pop(key)
        by_store: dict[int, tuple[Store, list[_Key]]] = {}
        for key in chosen:
            store = key.watched.middleware.store
            assert store is not None
            by_store.setdefault(id(store), (store, []))[1].append(key)
        for store, keys in by_store.values():
            self._load(store, keys)

    def _load(self, store: Store, keys: Sequence[_Key]) -> None:
        try:
            with DATABASE:
                traces = self._traces(store, list(dict.fromkeys(key.trace_id for key in keys)))
        except Exception as error:
            for key in keys:
                self._failed(key, "a trace was not scored", error)
            return
        for key in keys:
            trace = traces.get(key.trace_id)
            if trace is None:
                self._free(key)
            else:
                self._spawn(self._score(key, trace))

    def _traces(self, store: Store, trace_ids: Sequence[str]) -> dict[str, Trace]:
        """The traces, from memory where the store says that they have no other runs."""
        counted: Any = getattr(store, "run_counts", None)
        counts: dict[str, int] = {} if counted is None else counted(trace_ids)
        found = {
            trace_id: trace for trace_id in counts if (trace := self.traces.get(trace_id, counts[trace_id])) is not None
        }
        loaded = _load_traces(store, [trace_id for trace_id in trace_ids if trace_id not in found])
        for trace_id in loaded:
            if trace_id in counts:
                self.traces.put(loaded[trace_id])
        return {**found, **loaded}

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _score(self, key: _Key, trace: Trace) -> None:
        scorer, score = key.watched.middleware.scorer, None
        if scorer is not None:
            try:
                score = await scorer(trace, None)
            except BaseException as error:
                self.incidents.add("a trace was not scored", error)
        if not self._finished:  # those that end in this round of the loop are saved together
            asyncio.get_running_loop().call_soon(self._save)
        self._finished.append(_Finished(key, trace, score))

    def _save(self) -> None:
        finished, self._finished = self._finished, []
        by_store: dict[int, tuple[Store, list[_Finished]]] = {}
        for one in finished:
            store = one.key.watched.middleware.store
            assert store is not None
            by_store.setdefault(id(store), (store, []))[1].append(one)
        for store, group in by_store.values():
            scores = [one.score for one in group if one.score is not None]
            try:
                with DATABASE:
                    _save_scores(store, scores)
            except Exception:
                for one in group:
                    self._save_alone(store, one)
            else:
                for one in group:
                    self._stored(one)

    def _save_alone(self, store: Store, one: _Finished) -> None:
        try:
            if one.score is not None:
                with DATABASE:
                    store.save_score(one.score)
        except Exception as error:
            self._failed(one.key, "a score was not saved", error)
        else:
            self._stored(one)

    def _stored(self, one: _Finished) -> None:
        if one.key.watched.middleware.sinks:
            self._spawn(self._notify(one))
        else:
            self._release(one)

    def _failed(self, key: _Key, kind: str, error: Exception) -> None:
        """While the store is away, the trace waits for its turn; anything else is its own."""
        if meaning_of(error) != "away":
            self.incidents.add(kind, error)
            self._free(key)
            return
        with self.lock:
            ticket = self._busy.pop(key)
            self._waiting[key] = min(ticket, self._waiting.get(key, ticket))
        if not self._paused:
            self._paused = True
            self.incidents.add("the store is away, and scores wait for it", error)
            asyncio.get_running_loop().call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        self._paused = False
        self._launch()

    async def _notify(self, one: _Finished) -> None:
        try:
            await one.key.watched.middleware.notify(one.trace, one.score)
        except BaseException as error:
            self.incidents.add("a sink failed", error)
        self._release(one)

    def _release(self, one: _Finished) -> None:
        self.traces.release(one.trace)
        self._free(one.key)

    def _free(self, key: _Key) -> None:
        store_incidents(key.watched.middleware.store, self.incidents)
        with self.lock:
            self._busy.pop(key, None)
            more = bool(self._waiting)
        with self._changed:
            self._moved = time.monotonic()
            self._changed.notify_all()
        if more and self._wake is not None:
            self._wake.set()


def _load_traces(store: Store, trace_ids: Sequence[str]) -> dict[str, Trace]:
    many: Any = getattr(store, "save_scores", None)  # a store that takes many at once also gives them
    if callable(many) and len(trace_ids) > 1:
        found: Any = store.traces(ids=trace_ids)  # type: ignore[call-arg]  # more than the protocol asks
        return {trace.id: trace for trace in found}
    return {trace_id: trace for trace_id in trace_ids if (trace := store.trace(trace_id)) is not None}


def _save_scores(store: Store, scores: Sequence[Score]) -> None:
    many: Any = getattr(store, "save_scores", None)
    if callable(many) and scores:
        many(scores)
        return
    for score in scores:
        store.save_score(score)
