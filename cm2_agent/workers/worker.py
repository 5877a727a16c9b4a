"""`ScoringWorker`: one process of `cm2 work`, which does the jobs of one reward version."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from cm2_agent.errors import BudgetExhausted, JudgeError, StoreError
from cm2_agent.online.save_errors import meaning_of
from cm2_agent.store.claims import Claims
from cm2_agent.types.secrets import error_text
from cm2_agent.workers.job_tables import TASK
from cm2_agent.workers.ledger import LedgerAway
from cm2_agent.workers.queue import FIRST_REST, Parked, ScoringQueue

if TYPE_CHECKING:
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer
    from cm2_agent.store import SQLStore
    from cm2_agent.types.score import Score
    from cm2_agent.types.trace import Trace

WORKER = "cm2:worker/"
"""What the claims of workers begin with: who is alive."""
LEASE = 30.0
"""Seconds without a sign of life after which a worker's jobs are done by others."""
_ATTEMPTS = 3
"""Failures at one trace, or at so many traces one after the other, after which the judge's failure is taken for the
trace's, or for its end."""
_PAUSE = 0.5
"""Seconds until it is looked again whether the store is back, or a rest is over."""

_logger = logging.getLogger("cm2_agent")


class Again(Exception):
    """The job is to be done again after so many seconds; with `stop`, nothing else is begun before that. With `behind`
    it goes behind others: a trace that the judge fails at must not be the one that tells whether it answers."""

    def __init__(self, cause: str, *, seconds: float = 0.0, stop: bool = False, behind: bool = False) -> None:
        super().__init__(cause)
        self.seconds, self.stop, self.behind = seconds, stop, behind


class SetAside(Exception):
    """The job failed for its trace's sake: procrastinate keeps it as failed."""


@dataclass(kw_only=True)
class _Failing:
    """A trace at which the judge or a check fails: how often, and how much the judge had answered before."""

    answers: int
    tries: int = 0


@dataclass(kw_only=True)
class Done:
    """What one worker has done: scores stored, jobs that were done already, traces set aside, and why its jobs rest
    where they do."""

    scored: int = 0
    known: int = 0
    set_aside: int = 0
    parked: str | None = None


@dataclass(kw_only=True)
class ScoringWorker:
    """Scores the traces whose jobs it gets, `concurrency` at a time, until it is stopped; with `drain`, until no job is
    left, or all rest.

    A job is done when its score is stored, and one that is done twice stores one score. Where the judge does not
    answer, nothing is stored: the job waits, and after failures at three traces in a row all jobs of the reward rest,
    for every worker, until one try succeeds. While the database is away the worker waits for it.

    Args:
        store: A store on PostgreSQL.
        queue: The reward's jobs.
        scorer: Makes the scorer; called anew when the judge is tried again.
        concurrency: Traces at a time.
        lease: Seconds without a sign of life after which this worker's jobs are done by others.
        drain: Whether to end when nothing is left to do.
        rest: Seconds of the first rest of a judge that does not answer; doubled each time.
    """

    store: SQLStore
    queue: ScoringQueue
    scorer: Callable[[], ChecklistScorer]
    concurrency: int = 16
    lease: float = LEASE
    drain: bool = False
    rest: float = FIRST_REST
    done: Done = field(default_factory=Done)
    _scorer: ChecklistScorer | None = field(default=None, init=False)
    _failing: dict[int, _Failing] = field(default_factory=dict, init=False)
    _in_row: set[int] = field(default_factory=set, init=False)
    _answers: int = field(default=0, init=False)
    _probing: bool = field(default=False, init=False)
    _stopped: bool = field(default=False, init=False)
    _running: Any = field(default=None, init=False)

    def stop(self) -> None:
        """Begin no further job; `run` ends when those under way have."""
        self._stopped = True
        if self._running is not None:
            self._running.stop()

    async def run(self) -> Done:
        """Work. Raises StoreError where the store refuses what it will refuse again."""
        alive = Claims(self.store, seconds=self.lease)
        name = f"{WORKER}{self.queue.name}/{os.getpid()}-{uuid4().hex[:8]}"
        away = False
        try:
            while not self._stopped:
                try:
                    if alive.take([name]):
                        alive.drop_expired(WORKER)
                    if await self._round():
                        break
                    away = False
                except Exception as error:
                    if not _is_away(error):
                        raise
                    if not away:
                        _logger.warning("the store is away, and the worker waits for it: %s", error_text(error, 300))
                    away = True
                    await asyncio.sleep(_PAUSE)
        finally:
            await self._close_scorer()
            with suppress(StoreError):
                alive.close()
        return self.done

    async def _round(self) -> bool:
        """Work until something changes; True where nothing is left to do."""
        self.queue.retry_stalled(self.lease)
        self.queue.analyze()
        parked = self.queue.parked()
        if parked is not None and not self.queue.take_probe(first=self.rest):
            if self.drain and parked.seconds > 0:
                self.done.parked = parked.cause
                return True
            await asyncio.sleep(_PAUSE)
            return False
        self._probing = parked is not None
        self.done.parked = None if parked is None else parked.cause
        await self._work()
        if self.done.parked is not None:
            await self._close_scorer()
        if self._stopped:
            return True
        if not self.drain or self.queue.parked() is not None:
            return False
        if self.queue.left() == 0:
            self.done.parked = None
            return True
        await asyncio.sleep(_PAUSE)
        return False

    async def _work(self) -> None:
        """procrastinate's worker, until it is stopped or (to drain, or to try the judge) there is nothing to fetch."""
        import procrastinate
        from procrastinate import exceptions, middleware, retry

        class Retry(retry.BaseRetryStrategy):
            def get_retry_decision(self, *, exception: BaseException, job: Any) -> procrastinate.RetryDecision | None:
                if isinstance(exception, Again):
                    priority = job.priority - 1 if exception.behind else job.priority
                    return procrastinate.RetryDecision(
                        retry_in={"seconds": round(exception.seconds)}, priority=priority
                    )
                if isinstance(exception, asyncio.CancelledError | exceptions.JobAborted):
                    return procrastinate.RetryDecision(retry_in={"seconds": 0})
                return None

        async def supervise(call: middleware.AsyncCallNext, context: Any, worker: Any) -> Any:
            self._running = worker
            if self._stopped:
                worker.stop()
            try:
                return await call()
            except Again as again:
                if again.stop:
                    worker.stop()
                raise

        app = procrastinate.App(connector=procrastinate.PsycopgConnector(**_connection(self.store)))

        @app.task(name=TASK, pass_context=True, retry=Retry())
        async def score(context: Any, trace: int, again: bool = False, cause: str = "") -> None:
            try:
                tried = await self._job(trace, again)
            except Again:
                raise
            except Exception as error:
                if isinstance(error, LedgerAway) or meaning_of(error) == "away":
                    raise Again(str(error), stop=True) from error
                self._failing.pop(trace, None)
                self.done.set_aside += 1
                self.queue.note(context.job.id, error_text(error, 500))
                raise SetAside(str(error)) from error
            if self._probing and tried:
                self._running.stop()

        upkeep = asyncio.create_task(self._upkeep())
        try:
            async with app.open_async():
                await app.run_worker_async(
                    queues=[self.queue.name],
                    name="cm2",
                    concurrency=1 if self._probing else self.concurrency,
                    wait=not (self.drain or self._probing),
                    fetch_job_polling_interval=min(5.0, self.lease / 3),
                    delete_jobs="successful",
                    install_signal_handlers=False,
                    update_heartbeat_interval=self.lease / 3,
                    stalled_worker_timeout=self.lease,
                    worker_middleware=[supervise],
                )
        finally:
            self._running = None
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(self.lease / 3)
            with suppress(StoreError):
                self.queue.retry_stalled(self.lease)
                self.queue.analyze()

    async def _job(self, row: int, again: bool) -> bool:
        """Do one job; whether the judge was tried."""
        trace = self.queue.due(row, again=again, probing=self._probing)
        if isinstance(trace, Parked):
            raise Again(trace.cause, stop=True)
        if trace is None:
            self.done.known += 1
            return False
        try:
            score = await self._score(trace)
        except LedgerAway:
            raise
        except BudgetExhausted as error:
            raise self._parked(str(error)) from error
        self._require_answers(row, score)
        self.store.save_score(score)
        self._failing.pop(row, None)
        self.done.scored += 1
        if not score.usage.get("calls"):
            return False
        self._answers += 1
        self._in_row.clear()
        if self._probing:
            self.queue.unpark()
            self.done.parked = None
        return True

    async def _score(self, trace: Trace) -> Score:
        if self._scorer is None:
            self._scorer = self.scorer()
        task = None if trace.task_id is None else self.store.task(trace.task_id, trace.task_version)
        return await self._scorer(trace, task)

    def _require_answers(self, row: int, score: Score) -> None:
        """Raises where a judge owes the score an answer: nothing is stored then."""
        missing = [verdict for verdict in score.verdicts if verdict.value is None and verdict.cause == "infrastructure"]
        if not missing:
            return
        failing = self._failing.setdefault(row, _Failing(answers=self._answers))
        failing.tries += 1
        again = min(60.0, self.rest * failing.tries)
        owed = next((verdict for verdict in missing if verdict.reason == "judge failed"), None)
        if owed is None:
            if failing.tries < _ATTEMPTS:
                raise Again("a check did not answer", seconds=again, behind=True)
            return  # a check's own failure is stored, as everywhere
        cause = f"the judge does not answer: {owed.explanation or 'it gave no reason'}"
        self._in_row.add(row)
        tried = failing.tries >= _ATTEMPTS
        if self._probing or len(self._in_row) >= _ATTEMPTS or (tried and failing.answers == self._answers):
            del self._failing[row]  # it was not the trace's doing
            raise self._parked(cause, behind=True)
        if tried:
            raise JudgeError(f"{cause}; it failed at this trace {failing.tries} times, and answered at others")
        raise Again(cause, seconds=again, behind=True)

    def _parked(self, cause: str, *, behind: bool = False) -> Again:
        """All jobs rest."""
        self.queue.park(cause, first=self.rest)
        self.done.parked = cause
        self._in_row.clear()
        return Again(cause, stop=True, behind=behind)

    async def _close_scorer(self) -> None:
        """A judge that was refused, or whose connections have died, is made anew."""
        scorer, self._scorer = self._scorer, None
        close: Any = getattr(None if scorer is None else scorer.judge, "aclose", None)
        if close is not None:
            await close()


def _connection(store: SQLStore) -> dict[str, Any]:
    """How the store's driver connects, for procrastinate's pool."""
    engine = store.database.engine
    args, options = engine.dialect.create_connect_args(engine.url)
    return {"conninfo": args[0] if args else "", "kwargs": dict(options), "min_size": 1, "max_size": 4}


def _is_away(error: Exception) -> bool:
    """Whether the error is the database's."""
    import psycopg
    from procrastinate.exceptions import ConnectorException

    return isinstance(error, psycopg.Error | ConnectorException) or meaning_of(error) == "away"


__all__ = ["LEASE", "WORKER", "Done", "ScoringWorker"]
