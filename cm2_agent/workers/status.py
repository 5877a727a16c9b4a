"""What workers have to do, what holds them up, and what they have spent: `cm2 work --status`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select, text

from cm2_agent.store.claims import is_dead
from cm2_agent.store.codec import seal, unseal, unsealed
from cm2_agent.store.schema import reward_versions, scores
from cm2_agent.store.work_tables import claims, scoring_queues
from cm2_agent.workers.job_tables import BULK, is_installed
from cm2_agent.workers.queue import NOW
from cm2_agent.workers.worker import WORKER

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore

_LOOKED_AT = 10_000
"""How many of the last scores the rate is counted among."""


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """One reward version by which workers score: jobs that wait, by priority, are under way or were set aside; why they
    rest (`parked`), and for how many seconds; workers alive; scores of the last minute; calls and US dollars spent, of
    what may be."""

    reward: str
    active: bool
    live: int
    bulk: int
    running: int
    set_aside: int
    aside_for: str | None
    parked: str | None
    parked_seconds: float | None
    workers: int
    scored_last_minute: int
    calls: int
    budget_calls: int | None
    spent_usd: float | None
    budget_usd: float | None
    rpm: float | None
    tpm: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The status as text, the reward's name first."""
        yield self.reward + ("" if self.active else "  (retired)")
        yield f"  jobs: {self.live} live, {self.bulk} bulk, {self.running} running, {self.set_aside} set aside"
        if self.aside_for is not None:
            yield f"  set aside: {self.aside_for}"
        if self.parked is not None:
            wait = max(0.0, self.parked_seconds or 0.0)
            yield f"  PARKED, tried again in {wait:.0f} s: {self.parked}"
        limits = [f"{value:g} {name}" for name, value in (("rpm", self.rpm), ("tpm", self.tpm)) if value is not None]
        limit = f" (at most {', '.join(limits)})" if limits else ""
        yield f"  rate: {self.scored_last_minute} scores in the last minute{limit}"
        spent = "at an unknown price" if self.spent_usd is None else f"{self.spent_usd:.4g}{_of(self.budget_usd)} USD"
        yield f"  spent: {self.calls}{_of(self.budget_calls)} calls, {spent}"
        none = "" if self.workers or not self.active else "; start one: cm2 work"
        yield f"  workers: {self.workers}{none}"


def statuses(store: SQLStore) -> list[QueueStatus]:
    """The rewards by which the project is scored by workers, in the order in which they came. Raises StoreError."""
    with store.database.reading() as connection:
        if not is_installed(connection):
            return []
        query = select(scoring_queues, (scoring_queues.c.parked - NOW).label("rest"))
        query = query.where(scoring_queues.c.project == seal(store.project)).order_by(scoring_queues.c.seq)
        return [_status(connection, row) for row in connection.execute(query).all()]


def _status(connection: Connection, row: Any) -> QueueStatus:
    counted = text(
        "SELECT status::text, priority > :bulk, count(*), min(args ->> 'cause') FROM procrastinate_jobs"
        " WHERE queue_name = :queue GROUP BY 1, 2"
    )
    jobs: dict[tuple[str, bool], int] = {}
    cause = None
    for status, live, count, why in connection.execute(counted, {"queue": row.queue, "bulk": BULK}):
        jobs[status, live] = count
        cause = why if status == "failed" and why is not None else cause
    alive = select(claims.c.owner).where(
        claims.c.project == row.project, claims.c.name.startswith(f"{WORKER}{row.queue}/"), claims.c.until > NOW
    )
    last = select(scores.c.reward, scores.c.stored).order_by(scores.c.seq.desc()).limit(_LOOKED_AT).subquery()
    recent = (
        select(func.count())
        .select_from(last.join(reward_versions, reward_versions.c.seq == last.c.reward))
        .where(reward_versions.c.version == row.reward, last.c.stored > time.time_ns() - 60 * 10**9)
    )
    return QueueStatus(
        reward=unseal(row.reward),
        active=row.active,
        live=jobs.get(("todo", True), 0),
        bulk=jobs.get(("todo", False), 0),
        running=jobs.get(("doing", True), 0) + jobs.get(("doing", False), 0),
        set_aside=jobs.get(("failed", True), 0) + jobs.get(("failed", False), 0),
        aside_for=cause,
        parked=None if row.parked is None else unsealed(row.cause) or "",
        parked_seconds=None if row.parked is None else row.rest / 1e9,
        workers=sum(not is_dead(owner) for owner in connection.scalars(alive)),
        scored_last_minute=connection.scalar(recent) or 0,
        calls=row.calls,
        budget_calls=row.budget_calls,
        spent_usd=row.spent_usd,
        budget_usd=row.budget_usd,
        rpm=row.rpm,
        tpm=row.tpm,
    )


def _of(budget: float | None) -> str:
    return "" if budget is None else f" of {budget:g}"


__all__ = ["QueueStatus", "statuses"]
