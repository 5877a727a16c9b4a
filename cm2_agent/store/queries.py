"""Queries over stored traces: which there are, page by page in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, tuple_

from cm2_agent.errors import StoreError
from cm2_agent.store.codec import load_tags, seal, tag_pattern, unseal
from cm2_agent.store.engine import Database
from cm2_agent.store.reader import PAGE, chunks
from cm2_agent.store.schema import DEFAULT_PROJECT, reward_versions, runs, scores, traces

PageCursor = tuple[int, str, int]
"""Where a trace stands in the order of traces: the start of its first run, and its id; then its row."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which traces are meant; see `SQLStore.traces`."""

    project: str
    """As it is stored: sealed."""
    unscored: bool = False
    reward: str | None = None
    task: str | None = None
    policy: str | None = None
    user: str | None = None
    session: str | None = None
    tag: str | None = None


def page(
    connection: Connection,
    wanted: Filter,
    *,
    after: PageCursor | None = None,
    seqs: Sequence[int] | None = None,
    size: int,
) -> list[tuple[PageCursor, bool]]:
    """The next traces after a cursor, or those of these rows, in order; each with whether it has the tag."""
    columns = (traces.c.started, traces.c.id, traces.c.seq, traces.c.tags)
    query = select(*columns).where(traces.c.project == wanted.project)
    if after is not None:
        query = query.where(tuple_(traces.c.started, traces.c.id) > tuple_(after[0], after[1]))
    if seqs is not None:
        query = query.where(traces.c.seq.in_(seqs))
    for name in ("task", "policy", "user", "session"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(traces.c[name] == seal(value))
    if wanted.tag is not None:
        query = query.where(traces.c.tags.like(tag_pattern(wanted.tag), escape="!"))
    if wanted.unscored or wanted.reward is not None:
        scored = select(scores.c.seq).where(scores.c.trace == traces.c.seq)
        if wanted.reward is not None:
            versions = select(reward_versions.c.seq).where(reward_versions.c.version == seal(wanted.reward))
            scored = scored.where(scores.c.reward == versions.scalar_subquery())
        query = query.where(~scored.exists() if wanted.unscored else scored.exists())
    rows = connection.execute(query.order_by(traces.c.started, traces.c.id).limit(size))
    return [((row[0], row[1], row[2]), wanted.tag is None or wanted.tag in load_tags(row[3])) for row in rows]


def cursors(connection: Connection, project: str, ids: Sequence[str]) -> list[PageCursor]:
    """The cursors of these traces, in order; ids that are not stored are not among them."""
    found: set[PageCursor] = set()
    for chunk in chunks(ids):
        query = select(traces.c.started, traces.c.id, traces.c.seq)
        query = query.where(traces.c.project == project, traces.c.id.in_([seal(id) for id in chunk]))
        found.update((row[0], row[1], row[2]) for row in connection.execute(query))
    return sorted(found)


def pages(database: Database, wanted: Filter, ids: Iterable[str] | None = None) -> Iterator[list[int]]:
    """The rows of these traces, page by page, in order; each page in a transaction of its own."""
    if ids is not None:
        with database.reading() as connection:
            chosen = cursors(connection, wanted.project, list(ids))
        for chunk in chunks(chosen, PAGE):
            with database.reading() as connection:
                found = page(connection, wanted, seqs=[cursor[2] for cursor in chunk], size=PAGE)
            yield [cursor[2] for cursor, tagged in found if tagged]
        return
    after: PageCursor | None = None
    while True:
        with database.reading() as connection:
            found = page(connection, wanted, after=after, size=PAGE)
        if not found:
            return
        after = found[-1][0]
        yield [cursor[2] for cursor, tagged in found if tagged]


def projects(connection: Connection) -> list[str]:
    """The projects that hold traces, in order; each is one look-up in an index."""
    found: list[str] = []
    query = select(traces.c.project).order_by(traces.c.project).limit(1)
    last = connection.scalar(query)
    while last is not None:
        found.append(unseal(last))
        last = connection.scalar(query.where(traces.c.project > last))
    return found


def traces_of_runs(connection: Connection, project: str, ids: Sequence[str]) -> dict[str, str]:
    """The id of each stored run's trace, by the run's."""
    found: dict[str, str] = {}
    for chunk in chunks(dict.fromkeys(ids)):
        by_key = {seal(id): id for id in chunk}
        query = select(runs.c.id, traces.c.id.label("trace")).join(traces, traces.c.seq == runs.c.trace)
        for row in connection.execute(query.where(runs.c.project == project, runs.c.id.in_(list(by_key)))):
            found[by_key[row.id]] = unseal(row.trace)
    return found


def no_trace(id: str, project: str, url: str) -> StoreError:
    other = "" if project == DEFAULT_PROJECT else f", project {unseal(project)!r}"
    return StoreError(f"trace {id!r} is not in store {url}{other}; save its runs before its score or outcome")


def rows_of(connection: Connection, project: str, ids: Sequence[str], *, url: str) -> dict[str, int]:
    """The row of each trace by its id. Raises StoreError where one is not stored."""
    found: dict[str, int] = {}
    for chunk in chunks(dict.fromkeys(ids)):
        by_key = {seal(id): id for id in chunk}
        query = select(traces.c.id, traces.c.seq).where(traces.c.project == project, traces.c.id.in_(list(by_key)))
        for row in connection.execute(query):
            found[by_key[row.id]] = row.seq
    missing = [id for id in ids if id not in found]
    if missing:
        raise no_trace(missing[0], project, url)
    return found


def counts(cursor: Any, sqlite: bool, project: str, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many runs and outcomes each of these traces has, by a cursor of the driver; without those not stored."""
    mark = "?" if sqlite else "%s"
    found: dict[str, tuple[int, int]] = {}
    for some in chunks(ids):
        cursor.execute(
            "SELECT id, runs, (SELECT count(*) FROM outcomes WHERE outcomes.trace = traces.seq) FROM traces"  # noqa: S608 (marks only)
            f" WHERE project = {mark} AND id IN ({', '.join(mark for _ in some)})",
            (project, *map(seal, some)),
        )
        found.update({unseal(row[0]): (row[1], row[2]) for row in cursor.fetchall()})
    return found
