"""The one path of a finished trace, in training and live: score, save both, tell the sinks; apart from who makes traces
and who scores.

`process` is awaited by who ran the dialogue, and tells of every failure of store and scorer. `Live` is for production:
runs are handed over and forgotten by the user's thread, and nothing that goes wrong here comes back to it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from cm2_agent.errors import ConflictError, SchemaError, StoreError
from cm2_agent.incidents import Incidents
from cm2_agent.online.worker import Worker
from cm2_agent.types.protocols import Scorer, Sink, Store
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Run, Trace

__all__ = ["Live", "Middleware"]

_RETRIES = (0.05, 0.2, 1.0)
"""Seconds to wait before a live run is tried again on a store that did not take it."""


class Middleware:
    """Saves, scores and tells. Any of the three may be missing: no store keeps nothing, no scorer gives no score.

    >>> told = []
    >>> middleware = Middleware(None, sinks=[lambda trace, score: told.append(trace.id)])
    >>> asyncio.run(middleware.process([Run(id="r1")]))[0].id, told
    ('r1', ['r1'])
    """

    def __init__(
        self,
        store: Store | None = None,
        scorer: Scorer | None = None,
        sinks: Sequence[Sink] = (),
        incidents: Incidents | None = None,
    ) -> None:
        self.store = store
        self.scorer = scorer
        self.sinks = tuple(sinks)
        self.incidents = incidents if incidents is not None else Incidents()

    async def process(
        self,
        runs: Sequence[Run],
        task: Task | None = None,
        score: Score | None = None,
        outcomes: Mapping[str, float | None] | None = None,
    ) -> tuple[Trace, Score | None]:
        """Take a finished dialogue: its runs, in order, all of one trace. A score that is given is kept, else the
        scorer is asked.

        One transaction, where the store has `save_dialogue`. Raises StoreError, and whatever the scorer raises, after
        the runs were saved. A sink that fails is counted in `incidents`."""
        if not runs:
            raise StoreError("no runs were given; expected the runs of one dialogue, at least one")
        trace = Trace(id=runs[0].trace_id, runs=tuple(runs), outcomes=dict(outcomes or {}))
        failed: Exception | None = None
        if score is None and self.scorer is not None:
            try:
                score = await self.scorer(trace, task)
            except Exception as error:  # raised below: what happened is kept whatever it is worth
                failed = error
        self._save(trace, score)
        if failed is not None:
            raise failed
        await self.tell(trace, score)
        return trace, score

    async def tell(self, trace: Trace, score: Score | None) -> None:
        """Tell every sink, whether or not another fails."""
        for sink in self.sinks:
            try:
                answer = sink(trace, score)
                if inspect.isawaitable(answer):
                    await answer
            except Exception as error:
                self.incidents.add(f"a sink failed: {getattr(sink, '__name__', type(sink).__name__)}", error)

    def _save(self, trace: Trace, score: Score | None) -> None:
        if self.store is None:
            return
        save: Any = getattr(self.store, "save_dialogue", None)
        if callable(save):
            save(trace.runs, score=score, outcomes=trace.outcomes)
            return
        if trace.outcomes:
            given = f"the outcomes {sorted(trace.outcomes)} cannot be kept by a {type(self.store).__name__}"
            raise StoreError(f"{given}; expected a store with save_dialogue")
        for run in trace.runs:
            self.store.save_run(run)
        if score is not None:
            self.store.save_score(score)


class Live:
    """The live path: `submit(run)` from any thread, and a background thread saves it, then scores the whole trace and
    replaces its score.

    Runs wait in a queue of `size`; when it is full they are dropped and counted. As many traces may wait for their
    score; further ones stay without, counted, until `cm2 score` or their next run. At most `scoring` traces are scored
    at a time, each once for all the runs that came meanwhile. A run that the store does not take is tried again thrice,
    then dropped and counted. Counts are in `incidents.counts`, and in the store (`count_incident`) as soon as it takes
    something again. Raises StoreError without a store."""

    def __init__(self, middleware: Middleware, *, size: int = 10_000, scoring: int = 8) -> None:
        if middleware.store is None:
            raise StoreError(
                "live runs were to go nowhere; expected a middleware with a store, since a score needs the whole"
                " conversation"
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
        """Load what is stored of the trace, score it, save the score, tell the sinks; every failure is an incident."""
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
        await self.middleware.tell(trace, score)
        self._report()

    async def _ask(self, scorer: Scorer, trace: Trace) -> Score | None:
        try:
            return await scorer(trace, None)
        except Exception as error:
            self.incidents.add("a trace was not scored", error)
            return None

    def _report(self) -> None:
        """Tell the store what went wrong so far, if it keeps incidents."""
        count: Any = getattr(self.store, "count_incident", None)
        if not callable(count) or not self.incidents.pending:
            return
        pending = self.incidents.drain()
        for kind in list(pending):
            try:
                number, detail = pending[kind]
                count(kind, detail, number)
            except Exception:  # it is down again: said later
                self.incidents.restore(pending)
                return
            del pending[kind]
