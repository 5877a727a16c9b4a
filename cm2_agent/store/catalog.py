"""What all projects of a store share: tasks and checklists, caches, counts and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable

from cm2_agent.store import health
from cm2_agent.store import tasks as catalog
from cm2_agent.store.caches import SQLSimulationCache, SQLVerdictCache
from cm2_agent.store.engine import Database
from cm2_agent.store.statements import Statements
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import JSON
from cm2_agent.types.task import Task


class Catalog:
    """The methods of `SQLStore` that know no project."""

    _db: Database
    _do: Statements

    @property
    def url(self) -> str:
        """The URL without its password: fit for messages."""
        return self._db.url

    # Tasks and checklists

    def save_task(self, task: Task) -> None:
        """Raises ConflictError where a task of that id and version is stored with other content."""
        self.save_tasks([task])

    def save_tasks(self, tasks: Iterable[Task]) -> None:
        """Several in one transaction; their order of storing is the order of their groups."""
        given = list(tasks)
        with self._db.writing() as connection:
            catalog.save_tasks(connection, self._do, given)

    def task(self, id: str, version: int | None = None) -> Task | None:
        """The task of that version, or its newest; None where there is none."""
        with self._db.reading() as connection:
            return catalog.task(connection, id, version)

    def tasks(self) -> list[Task]:
        """The newest version of each task, in the order in which they were first stored."""
        with self._db.reading() as connection:
            return catalog.all_tasks(connection)

    def save_checklist(self, checklist: Checklist) -> str:
        """Store a checklist and return its hash. Raises ConflictError where that name and version is stored with other
        content."""
        with self._db.writing() as connection:
            return catalog.save_checklist(connection, self._do, checklist)

    def checklist(self, hash_or_name: str, version: int | None = None) -> Checklist | None:
        """By hash, or by name and version (the newest where none is given). Functions come back as names:
        `Checklist.bound` binds them."""
        with self._db.reading() as connection:
            return catalog.checklist(connection, hash_or_name, version)

    def checklist_sources(self, hash: str) -> dict[str, str]:
        """The sources of the Python functions in a stored checklist, by item id."""
        with self._db.reading() as connection:
            return catalog.checklist_sources(connection, hash)

    # Caches

    def verdict_cache(self) -> SQLVerdictCache:
        """Where a judge keeps its verdicts, so that the same question is never paid for twice."""
        return SQLVerdictCache(self._db, self._do)

    def simulation_cache(self) -> SQLSimulationCache:
        """Where a simulator keeps its answers, so that the same seed gives the same dialogue and is paid for once."""
        return SQLSimulationCache(self._db, self._do)

    # Health

    def count_incident(self, kind: str, detail: str = "", n: int = 1) -> None:
        """Count something that went wrong and must not break anyone's call, such as a dropped score; `cm2 doctor`
        reports it."""
        with self._db.writing() as connection:
            health.count_incident(connection, kind, detail, n)

    def incidents(self) -> dict[str, dict[str, JSON]]:
        """`{kind: {count, detail of the last, first, last}}`, times in nanoseconds since the epoch."""
        with self._db.reading() as connection:
            return health.read_incidents(connection)

    def health(self) -> dict[str, JSON]:
        """Everything that `cm2 doctor` reports: the schema, and counts of traces, calls by trainability, failures and
        NULLs by reason."""
        with self._db.reading() as connection:
            return health.health(connection, self.url)

    def count_tools(self) -> dict[str, JSON]:
        """`{tool: {"asked": n, "ran": m}}`: how often messages asked for the tool, and how many executions left a
        span."""
        with self._db.reading() as connection:
            return health.count_tools(connection)


__all__ = ["Catalog"]
