"""`ScoringQueue`: the jobs of one reward version in one project, and whether they rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from cm2_agent.store.codec import dump, seal, unsealed
from cm2_agent.store.reader import Reader
from cm2_agent.store.work_tables import scoring_queues
from cm2_agent.workers.job_tables import BULK, TASK

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore
    from cm2_agent.types.trace import Trace

NOW: ColumnElement[int] = literal_column("(extract(epoch FROM clock_timestamp()) * 1e9)::bigint", BigInteger)
"""Nanoseconds since the epoch by the server's clock, which all processes go by."""
FIRST_REST, LONGEST_REST = 5.0, 300.0
"""Seconds after which a judge that did not answer is tried again, at first and at most."""
_PAGE = 5000
_ROW = scoring_queues.c
_MISSING = text(
    "WITH missing AS (SELECT traces.seq FROM traces WHERE traces.project = :project AND traces.runs > 0"
    " AND traces.seq > :after AND NOT EXISTS (SELECT 1 FROM scores JOIN reward_versions ON"
    " reward_versions.seq = scores.reward WHERE scores.trace = traces.seq AND reward_versions.version = :reward"
    " AND scores.runs >= traces.runs) AND NOT EXISTS (SELECT 1 FROM procrastinate_jobs AS jobs"
    " WHERE jobs.lock = CAST(:queue AS text) || ':' || traces.seq AND jobs.status IN ('todo', 'doing'))"
    " ORDER BY traces.seq LIMIT :page)"
    " SELECT count(*), max(seq), procrastinate_defer_jobs_v1(array_agg(ROW(CAST(:queue AS varchar),"
    " CAST(:task AS varchar), CAST(:priority AS int), CAST(:queue AS text) || ':' || seq, NULL,"
    " jsonb_build_object('trace', seq, 'again', false), NULL)::procrastinate_job_to_defer_v1 ORDER BY seq))"
    " FROM missing HAVING count(*) > 0"
)
_UNSCORED = text(
    "SELECT NOT EXISTS (SELECT 1 FROM scores JOIN reward_versions ON reward_versions.seq = scores.reward WHERE"
    " scores.trace = traces.seq AND reward_versions.version = :reward AND scores.runs >= traces.runs)"
    " FROM traces WHERE traces.seq = :trace AND traces.project = :project"
)
_STALLED = text(
    "WITH stalled AS (SELECT jobs.id FROM procrastinate_jobs AS jobs LEFT JOIN procrastinate_workers AS workers"
    " ON workers.id = jobs.worker_id WHERE jobs.status = 'doing' AND jobs.queue_name = :queue AND"
    " (workers.id IS NULL OR workers.last_heartbeat < now() - make_interval(secs => CAST(:lease AS double precision)))"
    " FOR UPDATE OF jobs SKIP LOCKED)"
    " SELECT procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL) FROM stalled"
)

_CHANGED = text(
    "SELECT n_mod_since_analyze > 500 + n_live_tup / 5 FROM pg_stat_user_tables WHERE relid ="
    " 'procrastinate_jobs'::regclass"
)


class Parked(NamedTuple):
    """Why jobs rest, and for how many seconds from now; less than 0 where somebody may try again."""

    cause: str
    seconds: float


class ScoringQueue:
    """The jobs that score a project's traces by one reward version. Workers of the same reward share it. Raises
    StoreError."""

    def __init__(self, store: SQLStore, reward: str) -> None:
        self._db, self._project, self.reward = store.database, seal(store.project), reward
        digest = hashlib.sha256(f"{store.project}\0{reward}".encode("utf-8", "surrogatepass")).hexdigest()
        self.name = f"cm2:{digest[:32]}"
        self._of = {"project": self._project, "reward": seal(reward), "queue": self.name}
        self._own = _ROW.queue == self.name

    def open(self, limits: Mapping[str, float | None]) -> None:
        """Score every trace that is stored from now on. `limits` (budget_usd, budget_calls, rpm, tpm) hold for all
        workers; None leaves one as it is. A budget that was raised lets jobs that rest begin again."""
        begun = dict.fromkeys(("calls", "spent_usd", "dearest_usd", "next_call", "next_token", "parks"), 0)
        given = {name: limits.get(name) for name in ("budget_usd", "budget_calls", "rpm", "tpm")}
        new = insert(scoring_queues).values(**self._of, **given, **begun, active=True)
        said = new.excluded
        raised = or_(said.budget_usd > _ROW.budget_usd, said.budget_calls > _ROW.budget_calls)
        statement = new.on_conflict_do_update(
            index_elements=["project", "reward"],
            set_={
                "active": True,
                **{name: func.coalesce(said[name], _ROW[name]) for name in given},
                "parked": case((raised, null()), else_=_ROW.parked),
                "cause": case((raised, null()), else_=_ROW.cause),
                "parks": case((raised, 0), else_=_ROW.parks),
            },
        )
        with self._db.writing() as connection:
            connection.execute(statement)

    def enqueue_missing(self) -> int:
        """A job for each trace that has no score of all its runs, and no job; how many there were. What was set aside
        is tried again."""
        aside = text("DELETE FROM procrastinate_jobs WHERE queue_name = :queue AND status IN ('failed', 'aborted')")
        page = {**self._of, "task": TASK, "priority": BULK, "page": _PAGE}
        enqueued = after = 0
        while True:
            with self._db.writing() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:queue, 0))"), self._of)
                if not after:
                    connection.execute(aside, self._of)
                found = connection.execute(_MISSING, {**page, "after": after}).first()
            if found is None:
                if enqueued:
                    with self._db.writing() as connection:
                        connection.execute(text("ANALYZE procrastinate_jobs"))
                return enqueued
            enqueued, after = enqueued + found[0], found[1]

    def due(self, row: int, *, again: bool, probing: bool) -> Trace | Parked | None:
        """What a job comes to, in one view of the database: its trace, by its row; None where that was erased, or has a
        score of all its runs and is not to be scored `again`; and without `probing` why the jobs rest, where they
        do."""
        with self._db.reading() as connection:
            if not probing and (parked := self._parked(connection)) is not None:
                return parked
            unscored = connection.scalar(_UNSCORED, {**self._of, "trace": row})
            if unscored is None or not (unscored or again):
                return None
            return Reader(connection).traces([row])[0]

    def parked(self) -> Parked | None:
        """Why the jobs rest, None while they are done."""
        with self._db.reading() as connection:
            return self._parked(connection)

    def _parked(self, connection: Connection) -> Parked | None:
        query = select(_ROW.cause, _ROW.parked - NOW).where(self._own, _ROW.parked.is_not(None))
        found = connection.execute(query).first()
        return None if found is None else Parked(unsealed(found[0]) or "", found[1] / 1e9)

    def park(self, cause: str, *, first: float = FIRST_REST) -> None:
        """Let all jobs rest, twice as long as the last time: no worker begins one."""
        due = or_(_ROW.parked.is_(None), _ROW.parked <= NOW)
        rests = {
            "cause": seal(cause),
            "parked": case((due, _rested(first)), else_=_ROW.parked),
            "parks": case((due, _ROW.parks + 1), else_=_ROW.parks),
        }
        with self._db.writing() as connection:
            connection.execute(update(scoring_queues).where(self._own).values(rests))

    def take_probe(self, *, first: float = FIRST_REST) -> bool:
        """Whether this worker is the one to try whether the judge answers again; nobody else does for the next rest."""
        due = update(scoring_queues).where(self._own, _ROW.parked <= NOW)
        with self._db.writing() as connection:
            return connection.execute(due.values(parked=_rested(first), parks=_ROW.parks + 1)).rowcount == 1

    def unpark(self) -> None:
        """The judge answers: every worker goes on, with the jobs too that were to be tried again later."""
        due = text(
            "UPDATE procrastinate_jobs SET scheduled_at = NULL WHERE queue_name = :queue AND status = 'todo' AND"
            " scheduled_at > now()"
        )
        with self._db.writing() as connection:
            connection.execute(due, self._of)
            connection.execute(update(scoring_queues).where(self._own).values(parked=None, cause=None, parks=0))

    def retry_stalled(self, lease: float) -> int:
        """Make the jobs of workers that have not been heard of for so many seconds anybody's; how many these were."""
        with self._db.writing() as connection:
            return len(connection.execute(_STALLED, {**self._of, "lease": lease}).all())

    def analyze(self) -> None:
        """Let the planner know how many jobs there are, where they have become many: it fetches each job by a look at
        all others until it does, and autovacuum says so a minute later."""
        with self._db.writing() as connection:
            if connection.scalar(_CHANGED):
                connection.execute(text("ANALYZE procrastinate_jobs"))

    def left(self) -> int:
        """Jobs that wait or are under way."""
        query = text(
            "SELECT count(*) FROM procrastinate_jobs WHERE queue_name = :queue AND status IN ('todo', 'doing')"
        )
        with self._db.reading() as connection:
            return int(connection.scalar(query, self._of) or 0)

    def note(self, job: int, cause: str) -> None:
        """Say in a job that is set aside why it is."""
        statement = text("UPDATE procrastinate_jobs SET args = args || CAST(:cause AS jsonb) WHERE id = :job")
        with self._db.writing() as connection:
            connection.execute(statement, {"job": job, "cause": dump({"cause": cause}, "the cause")})

    def close(self) -> int:
        """Score no further trace by this reward, and drop the jobs that wait; how many these were."""
        with self._db.writing() as connection:
            connection.execute(update(scoring_queues).where(self._own).values(active=False))
            gone = text("DELETE FROM procrastinate_jobs WHERE queue_name = :queue AND status <> 'doing'")
            return connection.execute(gone, self._of).rowcount


def _rested(first: float) -> ColumnElement[int]:
    """When the next rest ends."""
    seconds = func.least(LONGEST_REST, first * func.power(2.0, func.least(_ROW.parks, 20)))
    return NOW + cast(seconds * 1e9, BigInteger)


__all__ = ["FIRST_REST", "NOW", "Parked", "ScoringQueue"]
