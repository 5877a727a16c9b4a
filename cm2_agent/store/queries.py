"""Queries over stored traces: which there are, page by page in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, and_, func, select, tuple_

from cm2_agent.errors import StoreError
from cm2_agent.store.codec import like_pattern, seal, unseal
from cm2_agent.store.engine import Database
from cm2_agent.store.reader import PAGE, chunks
from cm2_agent.store.schema import DEFAULT_PROJECT, runs, traces
from cm2_agent.store.selection import Selection, chosen, conditions, require_items

PageCursor = tuple[int, str, int]
"""Where a trace stands in the order of traces: the start of its first run, and its id; then its row."""


def page(
    connection: Connection,
    wanted: Selection,
    *,
    after: PageCursor | None = None,
    seqs: Sequence[int] | None = None,
    newest_first: bool = False,
    size: int,
) -> list[tuple[PageCursor, bool]]:
    """The next traces behind a cursor, or those of these rows, in order; each with whether it is meant."""
    columns = (traces.c.started, traces.c.id, traces.c.seq, traces.c.tags, traces.c.metadata)
    query = select(*columns).where(*conditions(wanted))
    if after is not None:
        place, last = tuple_(traces.c.started, traces.c.id), tuple_(after[0], after[1])
        query = query.where(place < last if newest_first else place > last)
    if seqs is not None:
        query = query.where(traces.c.seq.in_(seqs))
    order = [traces.c.started, traces.c.id]
    query = query.order_by(*(column.desc() for column in order) if newest_first else order)
    rows = connection.execute(query.limit(size)).all()
    meant = [True] * len(rows) if wanted.exact else chosen(connection, wanted, rows)
    return [((row[0], row[1], row[2]), one) for row, one in zip(rows, meant, strict=True)]


def cursors(connection: Connection, project: str, ids: Sequence[str]) -> list[PageCursor]:
    """The cursors of these traces, in order; ids that are not stored are not among them."""
    found: set[PageCursor] = set()
    for chunk in chunks(ids):
        query = select(traces.c.started, traces.c.id, traces.c.seq)
        query = query.where(traces.c.project == project, traces.c.id.in_([seal(id) for id in chunk]))
        found.update((row[0], row[1], row[2]) for row in connection.execute(query))
    return sorted(found)


def pages(
    database: Database,
    wanted: Selection,
    ids: Iterable[str] | None = None,
    *,
    after: PageCursor | None = None,
    newest_first: bool = False,
    size: int = PAGE,
) -> Iterator[list[int]]:
    """The rows of these traces, page by page (of at most `size`), in order; each page in a transaction of its own.
    Raises StoreError where an item that should have failed is in no checklist."""
    with database.reading() as connection:
        require_items(connection, wanted.filters)
        among = None if ids is None else cursors(connection, wanted.project, list(ids))
    if among is not None:
        behind = [one for one in among if after is None or (one < after if newest_first else one > after)]
        for chunk in chunks(reversed(behind) if newest_first else behind, size):
            with database.reading() as connection:
                rows = [cursor[2] for cursor in chunk]
                found = page(connection, wanted, seqs=rows, newest_first=newest_first, size=size)
            yield [cursor[2] for cursor, meant in found if meant]
        return
    while True:
        with database.reading() as connection:
            found = page(connection, wanted, after=after, newest_first=newest_first, size=size)
        if not found:
            return
        after = found[-1][0]
        yield [cursor[2] for cursor, meant in found if meant]


def count(database: Database, wanted: Selection) -> int:
    """How many traces are meant."""
    if not wanted.exact:
        return sum(len(seqs) for seqs in pages(database, wanted))
    with database.reading() as connection:
        query = select(func.count()).select_from(traces).where(*conditions(wanted))
        return int(connection.execute(query).scalar_one())


def ids_of(connection: Connection, seqs: Sequence[int]) -> list[str]:
    """The ids of these rows, in the order given."""
    found: dict[int, str] = {}
    for chunk in chunks(seqs):
        found.update(
            {
                row.seq: unseal(row.id)
                for row in connection.execute(select(traces.c.seq, traces.c.id).where(traces.c.seq.in_(chunk)))
            }
        )
    return [found[seq] for seq in seqs]


def ids_like(connection: Connection, project: str, beginning: str, most: int) -> list[str]:
    """The ids of at most so many traces that begin so, in order; one that is stored sealed is found by all of it."""
    pattern = like_pattern(beginning).removeprefix("%")
    begins = and_(traces.c.id >= beginning, traces.c.id.like(pattern, escape="!"))  # the first is for the index
    query = select(traces.c.id).where(traces.c.project == project, begins).order_by(traces.c.id).limit(most)
    sealed = seal(beginning) != beginning
    return [] if sealed else [id for row in connection.scalars(query) if (id := unseal(row)).startswith(beginning)]


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
