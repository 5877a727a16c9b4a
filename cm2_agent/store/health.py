"""The store's health: counts for `cm2 doctor`, and the incidents that capture and scoring report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from sqlalchemy import Column, Connection, Table, and_, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from cm2_agent.store import scores as scoring
from cm2_agent.store.caches import known_verdicts
from cm2_agent.store.codec import SEALED, body_of, load, seal, split_digests, unseal
from cm2_agent.store.migrate import HEAD, revision_of
from cm2_agent.store.reader import stored_message
from cm2_agent.store.schema import (
    checklists,
    checkpoints,
    contents,
    incidents,
    model_calls,
    runs,
    scores,
    tasks,
    tool_runs,
    traces,
    verdicts,
)
from cm2_agent.types.json_values import JSON


def count_incident(connection: Connection, kind: str, detail: str, n: int) -> None:
    """Add `n` to the count of a kind and keep the last detail."""
    insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    now = time.time_ns()
    statement = insert(incidents).values(kind=seal(kind), count=n, detail=seal(detail), first=now, last=now)
    more = {"count": incidents.c.count + n, "detail": statement.excluded.detail, "last": statement.excluded["last"]}
    connection.execute(statement.on_conflict_do_update(index_elements=["kind"], set_=more))


def read_incidents(connection: Connection) -> dict[str, dict[str, JSON]]:
    """`{kind: {count, detail, first, last}}`, times in nanoseconds since the epoch."""
    rows = connection.execute(select(incidents).order_by(incidents.c.kind))
    return {
        unseal(row.kind): {"count": row.count, "detail": unseal(row.detail), "first": row.first, "last": row.last}
        for row in rows
    }


def health(connection: Connection, url: str) -> dict[str, JSON]:
    """Counts of everything that `cm2 doctor` reports; JSON values only."""
    # without a cause and a weight it is no NULL: the item does not apply
    null = and_(verdicts.c.value.is_(None), or_(verdicts.c.cause.is_not(None), verdicts.c.weight > 0))
    null_verdict = (null, scoring.current_verdict())
    return {
        "url": url,
        "schema": {"revision": revision_of(connection, url), "head": HEAD},
        "traces": _count(connection, traces),
        "projects": _counts(connection, traces.c.project),
        "runs": _count(connection, runs),
        "failed_runs": _counts(connection, runs.c.failure_kind, runs.c.failure_kind.is_not(None)),
        "run_statuses": _counts(connection, runs.c.status),
        "model_calls": _counts(connection, model_calls.c.untrainable, none="trainable"),
        "failed_calls": _count(connection, model_calls, model_calls.c.error.is_not(None)),
        "tool_runs": _count(connection, tool_runs),
        "tool_runs_by_backend": _counts(connection, tool_runs.c.backend, none="unknown"),
        "failed_tool_runs": _count(connection, tool_runs, tool_runs.c.error.is_not(None)),
        "contents": _count(connection, contents),
        "dialogues_under_way": _count(connection, checkpoints),
        "tasks": _count(connection, tasks),
        "checklists": _count(connection, checklists),
        "scores": _count(connection, scores, scoring.current()),
        "null_rewards": _counts(
            connection, scores.c.null_reason, scores.c.value.is_(None), scoring.current(), none="unknown"
        ),
        "unscored_traces": _count(
            connection, traces, ~select(scores.c.seq).where(scores.c.trace == traces.c.seq).exists()
        ),
        "verdicts": scoring.count_verdicts(connection),
        "null_verdicts": _counts(connection, verdicts.c.cause, *null_verdict, none="unknown"),
        "null_verdict_reasons": _counts(connection, verdicts.c.reason, *null_verdict, none="unknown"),
        "known_verdicts": known_verdicts(connection),
        "judging": scoring.usage(connection),
        "incidents": read_incidents(connection),
    }


def count_tools(connection: Connection) -> dict[str, JSON]:
    """`{tool: {"asked": n, "ran": m}}`: how often a message asked for the tool, and how many executions left a span.
    Asked for are the calls in what recorded model calls answered, and in assistant messages that no recorded call
    wrote."""
    asked: Counter[str] = Counter()
    ran = Counter(_counts(connection, tool_runs.c.name))
    calls: dict[bytes, list[str]] = {}
    for row in connection.execute(select(contents).where(contents.c.kind == "message")):
        body = body_of(row)
        if '"tool_call"' not in body and not body.startswith(SEALED):
            continue
        names = [call.name for call in stored_message(load(body)).tool_calls]
        if names:
            calls[row.hash] = names
    outputs = (
        select(model_calls.c.output, func.count())
        .where(model_calls.c.output.is_not(None))
        .group_by(model_calls.c.output)
    )
    for digest, count in connection.execute(outputs):
        asked.update({name: count * many for name, many in Counter(calls.get(digest, ())).items()})
    query = (
        select(model_calls.c.run, model_calls.c.message, model_calls.c.output)
        .where(model_calls.c.message.is_not(None))
        .order_by(model_calls.c.run)
    )
    written = groupby(connection.execute(query), key=lambda row: row.run)
    run, places = next(written, (None, ()))
    known: set[int] = _counted(places)
    for row in connection.execute(select(runs.c.seq, runs.c.messages).order_by(runs.c.seq)):
        while run is not None and run < row.seq:
            run, places = next(written, (None, ()))
            known = _counted(places)
        own = known if run == row.seq else set()
        for position, digest in enumerate(split_digests(row.messages)):
            if position not in own:
                asked.update(calls.get(digest, ()))
    return {name: {"asked": asked[name], "ran": ran[name]} for name in sorted(asked.keys() | ran.keys())}


def _counted(places: Iterable[Any]) -> set[int]:
    """The messages of a run whose calls stand in `model_calls` themselves: others are read off the messages."""
    return {place.message for place in places if place.output is not None}


def _count(connection: Connection, table: Table, *where: Any) -> int:
    return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())


def _counts(connection: Connection, column: Column[Any], *where: Any, none: str = "none") -> dict[str, int]:
    """How many rows of each value, most frequent first; NULL is counted under `none`."""
    query = select(column, func.count()).where(*where).group_by(column).order_by(func.count().desc(), column)
    return {none if value is None else unseal(value): count for value, count in connection.execute(query)}
