"""The statements that write: built once with SQLAlchemy Core, compiled once for the database, run by the driver with
bound parameters. So a dialogue costs a few milliseconds instead of tens (tests/bench/bench_store.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite

from cm2_agent.store import schema

Row = tuple[Any, ...]


class Statement:
    """One compiled statement and its parameters' order."""

    def __init__(self, engine: Engine, statement: Any, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        assert compiled.positiontup == list(names), (compiled.positiontup, names)
        self.sql = str(compiled)

    def many(self, connection: Connection, rows: Sequence[Row]) -> None:
        if rows:
            connection.exec_driver_sql(self.sql, rows if len(rows) > 1 else rows[0])

    def one(self, connection: Connection, row: Row) -> int | None:
        """Run and return the row's `seq`, None where there is none."""
        found = connection.exec_driver_sql(self.sql, row).fetchone()
        return None if found is None else int(found[0])


def inserting(
    engine: Engine, table: Table, *, ignore: bool = False, replace: Sequence[str] = (), returning: bool = False
) -> Statement:
    """An INSERT whose parameters are the table's columns in their declared order (without `seq`). `ignore`: a row whose
    key is there already changes nothing. `replace`: the key columns whose repetition replaces the other columns."""
    insert: Any = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
    names = [column.name for column in table.columns if column.name != "seq"]
    statement = insert(table).values({name: bindparam(name) for name in names})
    if ignore:
        statement = statement.on_conflict_do_nothing()
    if replace:
        others = {name: statement.excluded[name] for name in names if name not in replace}
        statement = statement.on_conflict_do_update(index_elements=list(replace), set_=others)
    if returning:
        statement = statement.returning(table.c.seq)
    return Statement(engine, statement, names)


class Statements:
    """Every statement of the writing path, for one engine."""

    def __init__(self, engine: Engine) -> None:
        self.content = inserting(engine, schema.contents, ignore=True)
        self.trace = inserting(engine, schema.traces, ignore=True, returning=True)
        self.group_key = inserting(engine, schema.group_keys, ignore=True)
        self.run = inserting(engine, schema.runs, returning=True)
        self.model_call = inserting(engine, schema.model_calls)
        self.tool_run = inserting(engine, schema.tool_runs)
        self.outcome = inserting(engine, schema.outcomes, replace=["trace", "name"])
        self.task = inserting(engine, schema.tasks, ignore=True)
        self.checklist = inserting(engine, schema.checklists, ignore=True)
        self.reward_version = inserting(engine, schema.reward_versions, ignore=True)
        self.reward_checklist = inserting(engine, schema.reward_checklists, ignore=True)
        self.score = inserting(engine, schema.scores, replace=["trace", "reward", "runs"], returning=True)
        self.verdict = inserting(engine, schema.verdicts)
        self.label = inserting(engine, schema.labels, replace=["project", "trace", "item", "turn", "rater"])
        self.known_verdict = inserting(engine, schema.verdict_cache, ignore=True)
        self.simulation = inserting(engine, schema.simulations, ignore=True)
        self.checkpoint = inserting(engine, schema.checkpoints, replace=["project", "thread", "namespace"])
        of_write = ["project", "thread", "namespace", "checkpoint", "task", "position"]
        self.new_write = inserting(engine, schema.checkpoint_writes, ignore=True)
        self.special_write = inserting(engine, schema.checkpoint_writes, replace=of_write)
        writes = schema.checkpoint_writes.c
        of_thread = (writes.project == bindparam("p"), writes.thread == bindparam("t"))
        older = (*of_thread, writes.namespace == bindparam("n"), writes.checkpoint < bindparam("c"))
        self.old_writes = Statement(engine, delete(schema.checkpoint_writes).where(*older), ["p", "t", "n", "c"])
        newest = schema.checkpoints
        self.no_checkpoint = Statement(
            engine,
            delete(newest).where(newest.c.project == bindparam("p"), newest.c.thread == bindparam("t")),
            ["p", "t"],
        )
        self.no_writes = Statement(engine, delete(schema.checkpoint_writes).where(*of_thread), ["p", "t"])
        facts = ["started", "runs", "task", "policy", "group_key", "rollout", "user", "session", "tags", "metadata"]
        rows = schema.traces
        self.trace_facts = Statement(
            engine,
            update(rows).where(rows.c.seq == bindparam("row")).values({name: bindparam(name) for name in facts}),
            [*facts, "row"],
        )
        self.no_verdicts = Statement(
            engine, delete(schema.verdicts).where(schema.verdicts.c.score == bindparam("row")), ["row"]
        )
