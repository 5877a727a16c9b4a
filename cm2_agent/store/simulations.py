"""The cache of simulated tool answers in SQL: the same question to a simulator has one answer, in whatever process;
apart from runs, which keep what the agent was told, while this makes a simulation repeatable and may be emptied at any
time."""

from __future__ import annotations

import time

from sqlalchemy import func, select

from cm2_agent.store.codec import seal, unseal
from cm2_agent.store.engine import Database
from cm2_agent.store.schema import simulations
from cm2_agent.store.statements import Statements


class SQLSimulationCache:
    """A `SimulationCache` (graphs/backends/simulations.py). Threads may share it; several processes may use one
    database.

    `put` keeps what is there already, so that whoever asked twice gets one answer. Raises StoreError.
    """

    def __init__(self, database: Database, statements: Statements) -> None:
        self._db = database
        self._do = statements
        self._sql = f"SELECT body FROM simulations WHERE key = {'?' if database.sqlite else '%s'}"  # noqa: S608 (marks only)

    def get(self, key: str) -> str | None:
        with self._db.asking() as cursor:
            cursor.execute(self._sql, (seal(key),))
            row = cursor.fetchone()
        return None if row is None else unseal(row[0])

    def put(self, key: str, tool: str, body: str) -> None:
        with self._db.writing() as connection:
            self._do.simulation.many(connection, [(seal(key), seal(tool), seal(body), time.time_ns())])

    def __len__(self) -> int:
        with self._db.reading() as connection:
            return int(connection.execute(select(func.count()).select_from(simulations)).scalar_one())


__all__ = ["SQLSimulationCache"]
