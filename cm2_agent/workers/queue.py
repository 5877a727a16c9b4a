"""`ScoringQueue`: the jobs of one reward version in one project, and whether they rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import text

from cm2_agent.store.codec import dump, seal, unsealed
from cm2_agent.workers.job_tables import BULK, TASK

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore

NOW = "(extract(epoch FROM clock_timestamp()) * 1e9)::bigint"
"""Nanoseconds since the epoch by the server's clock, which all processes go by."""
FIRST_REST, LONGEST_REST = 5.0, 300.0
"""Seconds after which a judge that did not answer is tried again, at first and at most."""
_UNTIL = f"{NOW} + (least({LONGEST_REST}, CAST(:first AS double precision) * power(2, least(parks, 20))) * 1e9)::bigint"
_PAGE = 5000


class Parked(NamedTuple):
    """Why jobs rest, and for how many seconds from now; less than 0 where somebody may try again."""

    cause: str
    seconds: float


class Needed(NamedTuple):
    """What a job comes to: the trace's row, and whether it has no score yet of all its runs."""

    trace: int
    unscored: bool


class ScoringQueue:
    """The jobs that score a project's traces by one reward version. Workers of the same reward share it. Raises
    StoreError."""

    def __init__(self, store: SQLStore, reward: str) -> None:
        self._db, self._project, self.reward = store.database, seal(store.project), reward
        digest = hashlib.sha256(f"{store.project}\0{reward}".encode("utf-8", "surrogatepass")).hexdigest()
        self.name = f"cm2:{digest[:32]}"
        self._of = {"project": self._project, "reward": seal(reward), "queue": self.name}

    def open(self, limits: Mapping[str, float | None]) -> None:
        """Score every trace that is stored from now on. `limits` (budget_usd, budget_calls, rpm, tpm) hold for all
        workers; None leaves one as it is. A budget that was raised lets jobs that rest begin again."""
        names = ("budget_usd", "budget_calls", "rpm", "tpm")
        given = {name: limits.get(name) for name in names}
        raised = " OR ".join(f"(:{name} IS NOT NULL AND :{name} > old.{name})" for name in names[:2])
        kept = ", ".join(f"{name} = coalesce(excluded.{name}, old.{name})" for name in names)
        casts = {
            name: f"CAST(:{name} AS {'bigint' if name == 'budget_calls' else 'double precision'})" for name in names
        }
        for name, cast in casts.items():
            raised = raised.replace(f":{name} ", f"{cast} ")
        statement = (
            "INSERT INTO scoring_queues AS old (project, reward, queue, active, budget_usd, budget_calls, rpm, tpm, calls,"
            " spent_usd, dearest_usd, next_call, next_token, parks)"
            f" VALUES (:project, :reward, :queue, true, {', '.join(casts.values())}, 0, 0, 0, 0, 0, 0)"
            f" ON CONFLICT (project, reward) DO UPDATE SET active = true, {kept},"
            f" parked = CASE WHEN {raised} THEN NULL ELSE old.parked END,"
            f" cause = CASE WHEN {raised} THEN NULL ELSE old.cause END,"
            f" parks = CASE WHEN {raised} THEN 0 ELSE old.parks END"
        )
        with self._db.writing() as connection:
            connection.execute(text(statement), {**self._of, **given})

    def enqueue_missing(self) -> int:
        """A job for each trace that has no score of all its runs, and no job; how many there were. What was set aside
        is tried again."""
        statement = text(
            f"""
            WITH missing AS (
                SELECT traces.seq FROM traces
                WHERE traces.project = :project AND traces.runs > 0 AND traces.seq > :after
                AND NOT EXISTS (
                    SELECT 1 FROM scores JOIN reward_versions ON reward_versions.seq = scores.reward
                    WHERE scores.trace = traces.seq AND reward_versions.version = :reward AND scores.runs >= traces.runs)
                AND NOT EXISTS (
                    SELECT 1 FROM procrastinate_jobs AS jobs
                    WHERE jobs.lock = :queue || ':' || traces.seq AND jobs.status IN ('todo', 'doing'))
                ORDER BY traces.seq LIMIT {_PAGE}
            )
            SELECT count(*), max(seq), procrastinate_defer_jobs_v1(array_agg(ROW(
                :queue, '{TASK}', {BULK}, :queue || ':' || seq, NULL,
                jsonb_build_object('trace', seq, 'again', false), NULL)::procrastinate_job_to_defer_v1 ORDER BY seq))
            FROM missing HAVING count(*) > 0
            """  # noqa: S608 (our own constants)
        )
        aside = text("DELETE FROM procrastinate_jobs WHERE queue_name = :queue AND status IN ('failed', 'aborted')")
        enqueued = after = 0
        while True:
            with self._db.writing() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:queue, 0))"), self._of)
                if not after:
                    connection.execute(aside, self._of)
                found = connection.execute(statement, {**self._of, "after": after}).first()
            if found is None:
                return enqueued
            enqueued, after = enqueued + found[0], found[1]

    def needed(self, trace: int) -> Needed | None:
        """What is known of a job's trace, by its row; None where it was erased."""
        query = text(
            "SELECT traces.seq, NOT EXISTS (SELECT 1 FROM scores JOIN reward_versions ON reward_versions.seq ="
            " scores.reward WHERE scores.trace = traces.seq AND reward_versions.version = :reward AND scores.runs >="
            " traces.runs) FROM traces WHERE traces.seq = :trace AND traces.project = :project"
        )
        with self._db.reading() as connection:
            found = connection.execute(query, {**self._of, "trace": trace}).first()
        return None if found is None else Needed(*found)

    def parked(self) -> Parked | None:
        """Why the jobs rest, None while they are done."""
        query = text(
            f"SELECT cause, (parked - {NOW}) / 1e9 FROM scoring_queues WHERE queue = :queue AND parked IS NOT NULL"
        )
        with self._db.reading() as connection:
            found = connection.execute(query, self._of).first()
        return None if found is None else Parked(unsealed(found[0]) or "", float(found[1]))

    def park(self, cause: str, *, first: float = FIRST_REST) -> None:
        """Let all jobs rest, twice as long as the last time: no worker begins one."""
        due = f"(parked IS NULL OR parked <= {NOW})"
        statement = text(
            f"UPDATE scoring_queues SET cause = :cause, parks = parks + CASE WHEN {due} THEN 1 ELSE 0 END,"  # noqa: S608
            f" parked = CASE WHEN {due} THEN {_UNTIL} ELSE parked END WHERE queue = :queue"
        )
        with self._db.writing() as connection:
            connection.execute(statement, {**self._of, "first": first, "cause": seal(cause)})

    def take_probe(self, *, first: float = FIRST_REST) -> bool:
        """Whether this worker is the one to try whether the judge answers again; nobody else does for the next rest."""
        statement = text(
            f"UPDATE scoring_queues SET parks = parks + 1, parked = {_UNTIL}"  # noqa: S608 (our own constants)
            f" WHERE queue = :queue AND parked <= {NOW}"
        )
        with self._db.writing() as connection:
            return connection.execute(statement, {**self._of, "first": first}).rowcount == 1

    def unpark(self) -> None:
        """The judge answers: every worker goes on."""
        with self._db.writing() as connection:
            connection.execute(
                text("UPDATE scoring_queues SET parked = NULL, cause = NULL, parks = 0 WHERE queue = :queue"), self._of
            )

    def retry_stalled(self, lease: float) -> int:
        """Make the jobs of workers that have not been heard of for so many seconds anybody's; how many these were."""
        statement = text(
            "WITH stalled AS (SELECT jobs.id FROM procrastinate_jobs AS jobs LEFT JOIN procrastinate_workers AS workers"
            " ON workers.id = jobs.worker_id WHERE jobs.status = 'doing' AND jobs.queue_name = :queue AND"
            " (workers.id IS NULL OR workers.last_heartbeat < now() - make_interval(secs => :lease))"
            " FOR UPDATE OF jobs SKIP LOCKED)"
            " SELECT procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL) FROM stalled"
        )
        with self._db.writing() as connection:
            return len(connection.execute(statement, {**self._of, "lease": lease}).all())

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
            connection.execute(statement, {"job": job, "cause": dump({"cause": cause[:500]}, "the cause")})

    def close(self) -> int:
        """Score no further trace by this reward, and drop the jobs that wait; how many these were."""
        with self._db.writing() as connection:
            connection.execute(text("UPDATE scoring_queues SET active = false WHERE queue = :queue"), self._of)
            gone = text("DELETE FROM procrastinate_jobs WHERE queue_name = :queue AND status NOT IN ('doing')")
            return connection.execute(gone, self._of).rowcount


__all__ = ["FIRST_REST", "NOW", "Needed", "Parked", "ScoringQueue"]
