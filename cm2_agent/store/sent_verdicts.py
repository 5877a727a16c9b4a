"""`SentVerdicts`: which traces' verdicts another tool has acknowledged, so that a second sending sends what changed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from sqlalchemy import select

from cm2_agent.store.codec import seal, unseal
from cm2_agent.store.reader import chunks
from cm2_agent.store.sent_tables import sent
from cm2_agent.store.sql_store import SQLStore
from cm2_agent.store.statements import inserting


class SentVerdicts:
    """What one receiver has of the store's project."""

    def __init__(self, store: SQLStore, receiver: str) -> None:
        self._db = store.database
        self._project, self._receiver = seal(store.project), seal(receiver)
        self._insert = inserting(self._db.engine, sent, replace=["project", "receiver", "trace"])

    def digests(self, ids: Iterable[str]) -> dict[str, str]:
        """What was last sent of these traces, by their ids; those of which nothing was are not there."""
        own = (sent.c.project == self._project, sent.c.receiver == self._receiver)
        query = select(sent.c.trace, sent.c.digest).where(*own)
        found: dict[str, str] = {}
        with self._db.reading() as connection:
            for chunk in chunks([seal(id) for id in ids]):
                rows = connection.execute(query.where(sent.c.trace.in_(chunk)))
                found |= {unseal(row.trace): row.digest for row in rows}
        return found

    def save(self, digests: Mapping[str, str]) -> None:
        """Remember what was sent, by the traces' ids."""
        now = time.time_ns()
        rows = [(self._project, self._receiver, seal(id), digest, now) for id, digest in digests.items()]
        with self._db.writing() as connection:
            self._insert.many(connection, rows)


__all__ = ["SentVerdicts"]
