"""What is new in a project since it was last asked: traces with a new run or a new score."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Table, func, select

from cm2_agent.store.codec import unseal
from cm2_agent.store.engine import Database
from cm2_agent.store.schema import runs, scores, traces

WINDOW = 256
"""So many of the last rows of a table are looked at again: a transaction that began earlier may commit later, and a row
may be replaced under its number."""


class TraceChanges:
    """The traces of a project that change from when this was made. Each asking costs two look-ups by number, however
    much is stored.

    >>> from cm2_agent import Message, Run, SQLStore
    >>> with SQLStore("sqlite://") as store:
    ...     changes = store.changes()
    ...     store.save_run(Run(id="r1", messages=(Message.of("user", "Hi"),)))
    ...     changes.next(), changes.next()
    (['r1'], [])
    """

    def __init__(self, database: Database, project: str) -> None:
        self._database = database
        self._tails = (_Tail(runs, runs.c.hash, project), _Tail(scores, scores.c.stored, project))
        self.next()

    def next(self) -> list[str]:
        """The ids of the traces that have changed since this was asked last, in the order of their changes."""
        found: dict[str, None] = {}
        with self._database.reading() as connection:
            for tail in self._tails:
                found.update(dict.fromkeys(tail.new(connection)))
        return list(found)


class _Tail:
    """The end of a table whose rows belong to traces: `mark` tells a replaced row from the one before."""

    def __init__(self, table: Table, mark: Column[Any], project: str) -> None:
        self._table, self._mark, self._project = table, mark, project
        self._seen: dict[int, Any] | None = None
        self._last = 0

    def new(self, connection: Connection) -> list[str]:
        """The traces of the rows that are new or other than before; none the first time."""
        table = self._table
        before = self._seen
        if before is None:
            self._last = connection.scalar(select(func.max(table.c.seq))) or 0
        query = (
            select(table.c.seq, self._mark, traces.c.id)
            .join(traces, traces.c.seq == table.c.trace)
            .where(table.c.seq > self._last - WINDOW, traces.c.project == self._project)
            .order_by(table.c.seq)
        )
        rows = connection.execute(query).all()
        self._seen = {seq: mark for seq, mark, _ in rows}
        self._last = max([self._last, *self._seen])
        if before is None:
            return []
        return [unseal(id) for seq, mark, id in rows if seq not in before or before[seq] != mark]


__all__ = ["TraceChanges"]
