"""The live path of a run: from the user's thread to store, scorer and sinks in a background thread.

What goes wrong here never comes back to the caller; it is counted."""

from __future__ import annotations

import asyncio
from typing import Any

from cm2_agent.errors import ConflictError, SchemaError, StoreError
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.worker import Worker
from cm2_agent.types.protocols import Scorer, Store
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

__all__ = ["Live"]

_RETRIES = (0.05, 0.2, 1.0)
"""Seconds to wait before a run is tried again on a store that did not take it."""


class Live:
    """Takes runs from any thread (`submit`); a background thread saves each, then scores its whole trace and replaces
    the trace's score.

    Runs wait in a queue of `size`; when it is full they are dropped and counted. As many traces may wait for their
    score; further ones are counted and stay without, until `cm2 score` or their next run. At most `scoring` traces are
    scored at a time, each once for all the runs that came meanwhile. A run that the store does not take is tried again
    three times, then dropped and counted. Counts are in `incidents.counts`, and in the store (`count_incident`) as soon
    as it takes something again. Raises StoreError where the middleware has no store."""

    def __init__(self, middleware: Middleware, *, size: int = 10_000, scoring: int = 8) -> None:
        if middleware.store is None:
            raise StoreError(
                "a live path needs a middleware with a store, since a score needs the whole conversation, and this one"
                " has none; give it a store"
            )
        self.store: Store = middleware.store
        self.middleware = middleware
        self.incidents = middleware.incidents
        self._slots, self._size = scoring, size
        self._forget()
        self._worker: Worker[Run] = Worker(self._take, size=size, incidents=self.incidents, forget=self._forget)

    def _forget(self) -> None:
        self._waiting: dict[str, None] = {}
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, run: Run) -> None:
        """Hand over a finished run. Returns at once; never raises."""
        self._worker.submit(run)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was submitted is saved and scored; False if that took longer than `timeout` seconds."""
        return self._worker.flush(timeout)

    async def _take(self, run: Run) -> None:
        if not await self._save(run):
            return
        self._report()
        if self.middleware.scorer is None:
            await self._finish(run.trace_id)
            return
        if len(self._waiting) >= self._size and run.trace_id not in self._waiting:
            self.incidents.add(f"dropped: more than {self._size} traces were waiting to be scored")
            self._report()
            return
        self._waiting[run.trace_id] = None
        self._start_scoring()

    async def _save(self, run: Run) -> bool:
        for pause in (*_RETRIES, None):
            try:
                self.store.save_run(run)
                return True
            except Exception as error:
                if pause is None or isinstance(error, ConflictError | SchemaError) or not isinstance(error, StoreError):
                    self.incidents.add("a run was not saved", error)
                    return False
                await asyncio.sleep(pause)
        return False

    def _start_scoring(self) -> None:
        for trace_id in [trace_id for trace_id in self._waiting if trace_id not in self._busy]:
            if len(self._busy) >= self._slots:
                return
            del self._waiting[trace_id]
            self._busy.add(trace_id)
            task = asyncio.get_running_loop().create_task(self._score(trace_id))
            self._tasks.add(task)
            self._worker.hold()
            task.add_done_callback(self._scored)

    def _scored(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start_scoring()
        self._worker.release()

    async def _score(self, trace_id: str) -> None:
        try:
            await self._finish(trace_id)
        finally:
            self._busy.discard(trace_id)

    async def _finish(self, trace_id: str) -> None:
        """Load the stored trace, score it, save the score, notify the sinks; every failure is an incident."""
        scorer = self.middleware.scorer
        if scorer is None and not self.middleware.sinks:
            return
        score: Score | None = None
        try:
            trace = self.store.trace(trace_id)
            if trace is None:
                return
            if scorer is not None:
                score = await self._ask(scorer, trace)
                if score is not None:
                    self.store.save_score(score)
        except Exception as error:
            self.incidents.add("a score was not saved", error)
            return
        await self.middleware.notify(trace, score)
        self._report()

    async def _ask(self, scorer: Scorer, trace: Trace) -> Score | None:
        try:
            return await scorer(trace, None)
        except Exception as error:
            self.incidents.add("a trace was not scored", error)
            return None

    def _report(self) -> None:
        """Store what went wrong so far, if the store counts incidents."""
        count: Any = getattr(self.store, "count_incident", None)
        if not callable(count) or not self.incidents.pending:
            return
        pending = self.incidents.drain()
        for kind in list(pending):
            try:
                number, detail = pending[kind]
                count(kind, detail, number)
            except Exception:  # it is down again: they are reported later
                self.incidents.restore(pending)
                return
            del pending[kind]
