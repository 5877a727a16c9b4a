"""`ReceivedSpans`: what a collector acknowledged and no stored run holds yet, so that a crash loses nothing of it.

A row holds the spans of one trace out of one write. It stays for a while after their run was stored: a span that comes
late is put together with them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, func, select, true, tuple_, update

from cm2_agent.store.codec import seal, unseal
from cm2_agent.store.reader import chunks
from cm2_agent.store.received_tables import received
from cm2_agent.store.sql_store import SQLStore
from cm2_agent.store.statements import Statement, inserting


class ReceivedRow(NamedTuple):
    """Spans of one trace."""

    project: str
    trace: str
    batch: int
    built: bool
    body: bytes


class Arrived(NamedTuple):
    """Spans of one trace that are to be stored."""

    project: str
    trace: str
    body: bytes


class ReceivedSpans:
    """The received spans of all projects in the store's database."""

    def __init__(self, store: SQLStore) -> None:
        self._db = store.database
        engine = self._db.engine
        self._insert = inserting(engine, received)
        row = received.c
        settled = update(received).where(
            row.project == bindparam("p"),
            row.trace == bindparam("t"),
            row.batch <= bindparam("b"),
            row.built.is_(False),
        )
        self._settle = Statement(engine, settled.values(built=true()), ["p", "t", "b"])
        gone = delete(received).where(
            row.project == bindparam("p"), row.trace == bindparam("t"), row.batch <= bindparam("b")
        )
        self._remove = Statement(engine, gone, ["p", "t", "b"])

    def add(self, arrived: Sequence[Arrived], batch: int) -> None:
        """Store what came, in one transaction. Raises StoreError."""
        now = time.time_ns()
        rows = [(seal(one.project), seal(one.trace), batch, now, False, one.body) for one in arrived]
        with self._db.storing() as cursor:
            self._insert.many(cursor, rows)

    def settle(self, traces: Iterable[tuple[str, str, int]], *, keep: bool = True) -> None:
        """The runs of these (project, trace, last batch) are stored: their spans are kept for those that come late, or
        removed. Raises StoreError."""
        with self._db.storing() as cursor:
            self.settle_within(cursor, traces, keep=keep)

    def settle_within(self, target: Any, traces: Iterable[tuple[str, str, int]], *, keep: bool = True) -> None:
        """The same within a transaction: that which stores the runs, so that no crash comes between."""
        rows = [(seal(project), seal(trace), batch) for project, trace, batch in traces]
        (self._settle if keep else self._remove).many(target, rows)

    def of_traces(
        self, traces: Iterable[tuple[str, str]], *, built: bool | None = None
    ) -> dict[tuple[str, str], list[ReceivedRow]]:
        """The rows of these (project, trace), in the order in which they came; with `built`, those that are. Raises
        StoreError."""
        found: dict[tuple[str, str], list[ReceivedRow]] = {}
        wanted = [(seal(project), seal(trace)) for project, trace in traces]
        with self._db.reading() as connection:
            for chunk in chunks(wanted):
                query = select(received).where(tuple_(received.c.project, received.c.trace).in_(chunk))
                if built is not None:
                    query = query.where(received.c.built.is_(built))
                for row in connection.execute(query.order_by(received.c.seq)):
                    one = ReceivedRow(unseal(row.project), unseal(row.trace), row.batch, row.built, bytes(row.body))
                    found.setdefault((one.project, one.trace), []).append(one)
        return found

    def waiting(self) -> Iterator[ReceivedRow]:
        """The rows that no stored run holds, in the order in which they came."""
        query = select(received).where(received.c.built.is_(False)).order_by(received.c.seq)
        with self._db.reading() as connection:
            for row in connection.execution_options(yield_per=100).execute(query):
                yield ReceivedRow(unseal(row.project), unseal(row.trace), row.batch, row.built, bytes(row.body))

    def built(self, most: int) -> list[tuple[str, str]]:
        """The (project, trace) of the last rows of stored runs, at most so many."""
        query = select(received.c.project, received.c.trace).where(received.c.built.is_(True))
        with self._db.reading() as connection:
            rows = connection.execute(query.order_by(received.c.seq.desc()).limit(most)).all()
        return [(unseal(project), unseal(trace)) for project, trace in reversed(rows)]

    def last_batch(self) -> int:
        """The highest batch that is stored, 0 where nothing is."""
        with self._db.reading() as connection:
            return connection.scalar(select(func.max(received.c.batch))) or 0

    def prune(self, before: int) -> int:
        """Remove the rows of stored runs that came before a time in nanoseconds; how many these were."""
        old = delete(received).where(received.c.built.is_(True), received.c.stored < before)
        with self._db.writing() as connection:
            return connection.execute(old).rowcount

    def counts(self) -> Mapping[str, int]:
        """How many rows wait for their run, and how many are kept for late spans."""
        query = select(received.c.built, func.count()).group_by(received.c.built)
        with self._db.reading() as connection:
            found = {bool(built): count for built, count in connection.execute(query)}
        return {"waiting": found.get(False, 0), "kept": found.get(True, 0)}


__all__ = ["Arrived", "ReceivedRow", "ReceivedSpans"]
