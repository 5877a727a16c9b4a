"""The caches in SQL: a judge's verdicts and a simulator's answers, so that the same question is paid for once, by
whatever process. Both may be emptied at any time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields

from sqlalchemy import Connection, func, select

from cm2_agent.store.codec import dump, load, seal, unseal
from cm2_agent.store.engine import Database
from cm2_agent.store.reader import chunks
from cm2_agent.store.schema import simulations, verdict_cache
from cm2_agent.store.statements import Row, Statements
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Verdict

_DEFAULTS = {spec.name: spec.default for spec in fields(Verdict) if spec.name not in {"item", "value", "weight"}}
_ALIKE = 8
"""Keys are asked for in numbers rounded up to a multiple of this, so that few different statements are prepared."""


class SQLVerdictCache:
    """A `VerdictCache` (rewards/judges/cache.py). Threads may share it; several processes may use one
    database.

    `put` keeps what is there already, so that whoever asked twice gets one answer; a NULL that is no judgement (cause
    `infrastructure`, or none) is not kept. Raises StoreError."""

    def __init__(self, database: Database, statements: Statements) -> None:
        self._db = database
        self._do = statements
        self._mark = "?" if database.sqlite else "%s"

    def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        by_key = {seal(key): key for key in keys}
        if not by_key:
            return {}
        found: dict[str, Verdict] = {}
        with self._db.asking() as cursor:
            for chunk in chunks(by_key):
                chunk += chunk[-1:] * (-len(chunk) % _ALIKE)
                marks = ",".join([self._mark] * len(chunk))
                sql = f"SELECT key, item, value, body FROM verdict_cache WHERE key IN ({marks})"  # noqa: S608 (marks only)
                cursor.execute(sql, tuple(chunk))
                for row in cursor.fetchall():
                    found[by_key[row[0]]] = _verdict(row[1], row[2], row[3])
        return found

    def put(self, verdicts: Mapping[str, Verdict]) -> None:
        now = time.time_ns()
        rows: list[Row] = [
            (
                seal(key),
                seal(verdict.item),
                verdict.value,
                dump(_rest(verdict), f"the verdict on item {verdict.item!r}"),
                now,
            )
            for key, verdict in sorted(
                verdicts.items()
            )  # in one order, so that writers wait for each other and never deadlock
            if verdict.value is not None or verdict.cause == "content"
        ]
        if rows:
            with self._db.writing() as connection:
                self._do.known_verdict.many(connection, rows)

    def __len__(self) -> int:
        with self._db.reading() as connection:
            return known_verdicts(connection)


class SQLSimulationCache:
    """A `SimulationCache` (graphs/backends/simulate.py). Threads may share it; several processes may use one
    database.

    The same question to a simulator has one answer: `put` keeps what is there already. Raises StoreError."""

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


def known_verdicts(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(verdict_cache)).scalar_one())


def _rest(verdict: Verdict) -> dict[str, JSON]:
    """What differs from a Verdict's defaults, beside item and value, which have columns of their own."""
    rest = {name: value for name, default in _DEFAULTS.items() if (value := getattr(verdict, name)) != default}
    if "depends_on" in rest:
        rest["depends_on"] = list(verdict.depends_on)
    if "soft" in rest:
        rest["soft"] = list(verdict.soft)
    if "evidence" in rest:
        rest["evidence"] = [dict(quote) for quote in verdict.evidence]
    return {"weight": verdict.weight, **rest}


def _verdict(item: str, value: bool | int | None, body: str) -> Verdict:
    return Verdict.from_json({"item": unseal(item), "value": None if value is None else bool(value), **load(body)})


__all__ = ["SQLSimulationCache", "SQLVerdictCache", "known_verdicts"]
