"""The traces of a project that are meant, as SQL: every value is bound, and what no database can decide of sealed text
and of scores stored in parts is decided on the rows that it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, or_, select

from cm2_agent.errors import StoreError
from cm2_agent.store import scores as scoring
from cm2_agent.store.codec import SEALED, like_pattern, load, load_tags, seal, tag_pattern, unseal
from cm2_agent.store.schema import checklists, model_calls, runs, scores, tasks, tool_runs, traces, verdicts
from cm2_agent.store.trace_filter import TraceFilter, metadata_text, nanoseconds
from cm2_agent.types.json_values import json_text

_ESCAPE = "!"
_LAST = 2**63 - 1
"""The last time that a column holds, in nanoseconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The traces of a project that every one of the filters lets through.

    `project` is as it is stored: sealed. `unscored`: those without a score under `reward` (under any version where none
    is named); else `reward` wants a score under it."""

    project: str
    filters: tuple[TraceFilter, ...] = ()
    unscored: bool = False
    reward: str | None = None

    @property
    def exact(self) -> bool:
        """Whether the database alone decides."""
        return not any(where.tags or where.metadata or where.failed for where in self.filters)


def conditions(wanted: Selection) -> list[ColumnElement[bool]]:
    """What the database can decide, on `traces`: it lets through all that is meant, and little else."""
    found: list[ColumnElement[bool]] = [traces.c.project == wanted.project]
    if wanted.unscored or wanted.reward is not None:
        scored = select(scores.c.seq).where(scores.c.trace == traces.c.seq)
        if wanted.reward is not None:
            scored = scored.where(scoring.under(wanted.reward))
        found.append(~scored.exists() if wanted.unscored else scored.exists())
    for where in wanted.filters:
        found += _conditions(where)
    return found


def _conditions(where: TraceFilter) -> Iterable[ColumnElement[bool]]:
    for name in ("task", "policy", "user", "session"):
        value = getattr(where, name)
        if value is not None:
            yield traces.c[name] == seal(value)
    if where.since is not None:
        yield traces.c.started >= min(max(nanoseconds(where.since), 1), _LAST)
    if where.until is not None:
        yield traces.c.started.between(1, min(max(nanoseconds(where.until), 0), _LAST) - 1)
    if where.agent is not None:
        yield _of_agent(seal(where.agent))
    for tag in where.tags:
        yield traces.c.tags.like(tag_pattern(tag), escape=_ESCAPE)
    for key in where.metadata:
        yield _has_key(key)
    if where.reward_below is not None:
        yield _scored(where.reward).where(scores.c.value < where.reward_below, scoring.current()).exists()
    for item in where.failed:
        failing = _scored(where.reward).join(verdicts, verdicts.c.score == scores.c.seq)
        yield failing.where(verdicts.c.item == seal(item), verdicts.c.value.is_(False)).exists()


def _of_agent(name: str) -> ColumnElement[bool]:
    """Whether a run of the trace, a model call in it or an execution of a tool bears the name."""
    of_trace = runs.c.trace == traces.c.seq
    calls = select(model_calls.c.run).join(runs, runs.c.seq == model_calls.c.run)
    tools = select(tool_runs.c.run).join(runs, runs.c.seq == tool_runs.c.run)
    return or_(
        select(runs.c.seq).where(of_trace, runs.c.name == name).exists(),
        calls.where(of_trace, model_calls.c.agent == name).exists(),
        tools.where(of_trace, tool_runs.c.agent == name).exists(),
    )


def _has_key(key: str) -> ColumnElement[bool]:
    """Whether the metadata may hold the key: a sealed text shows none."""
    sealed = traces.c.metadata.like(f"{SEALED}%")
    spelled = json_text(key) + ":"
    if seal(spelled) != spelled:  # no database takes it as it is
        return sealed
    return or_(sealed, traces.c.metadata.like(like_pattern(spelled), escape=_ESCAPE))


def _scored(reward: str | None) -> Select[tuple[int]]:
    """The trace's scores under a version, or under the newest that it has one under."""
    return select(scores.c.seq).where(scores.c.trace == traces.c.seq, scoring.under(reward))


def chosen(connection: Connection, wanted: Selection, rows: Sequence[Any]) -> list[bool]:
    """Of rows of `traces` (with `seq`, `tags` and `metadata`) that meet `conditions`, which are meant."""
    meant = [all(_says(where, row) for where in wanted.filters) for row in rows]
    for where in wanted.filters:
        if where.failed:
            left = [row.seq for row, still in zip(rows, meant, strict=True) if still]
            found = scoring.of_traces(connection, left, where.reward)
            failed = {
                seq: {verdict.item for verdict in score.verdicts if verdict.failed} for seq, score in found.items()
            }
            meant = [
                still and failed.get(row.seq, set()).issuperset(where.failed)
                for row, still in zip(rows, meant, strict=True)
            ]
    return meant


def _says(where: TraceFilter, row: Any) -> bool:
    if where.tags and not set(where.tags) <= set(load_tags(row.tags)):
        return False
    if where.metadata:
        held = {} if row.metadata is None else load(row.metadata)
        return all(
            key in held and metadata_text(held[key]) == metadata_text(value) for key, value in where.metadata.items()
        )
    return True


def require_items(connection: Connection, filters: Iterable[TraceFilter]) -> None:
    """Raises StoreError where an item that should have failed is in no checklist that the store knows."""
    for item in dict.fromkeys(item for where in filters for item in where.failed):
        if (
            connection.execute(select(verdicts.c.item).where(verdicts.c.item == seal(item)).limit(1)).first()
            is not None
        ):
            continue
        known = _items(connection)
        if item in known:
            continue
        near = get_close_matches(item, known, n=3, cutoff=0.5) or sorted(known)[:8]
        names = f"expected one of its items, such as {', '.join(near)}" if near else "it holds no verdicts yet"
        raise StoreError(f"no checklist in the store has an item {item!r}; {names}")


def _items(connection: Connection) -> set[str]:
    """The items of the stored checklists, of tasks' own, and of verdicts; those are one look-up in an index each."""
    bodies = [load(body) for body in connection.scalars(select(checklists.c.body))]
    bodies += [own for body in connection.scalars(select(tasks.c.body)) if (own := load(body).get("checklist"))]
    found = {str(item["id"]) for body in bodies for item in body["items"]}
    query = select(verdicts.c.item).order_by(verdicts.c.item).limit(1)
    last = connection.scalar(query)
    while last is not None:
        found.add(unseal(last))
        last = connection.scalar(query.where(verdicts.c.item > last))
    return found


__all__ = ["Selection", "chosen", "conditions", "require_items"]
