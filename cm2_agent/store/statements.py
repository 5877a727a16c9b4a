"""The statements that write: built once with SQLAlchemy Core, compiled once for the database, run by the driver with
bound parameters. So a dialogue costs a few milliseconds instead of tens (tests/bench/bench_store.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, Table, bindparam, delete, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from cm2_agent.store import schema

Row = tuple[Any, ...]


class Statement:
    """One compiled statement and its parameters' order."""

    def __init__(self, engine: Engine, statement: Any, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        assert compiled.positiontup == list(names), (compiled.positiontup, names)
        self.sql = str(compiled)

    def many(self, target: Any, rows: Sequence[Row]) -> None:
        """Run once for each row, on a Connection or on a cursor of the driver."""
        if not rows:
            return
        if isinstance(target, Connection):
            target.exec_driver_sql(self.sql, rows if len(rows) > 1 else rows[0])
        elif len(rows) > 1:
            target.executemany(self.sql, rows)
        else:
            target.execute(self.sql, rows[0])

    def row(self, target: Any, row: Row) -> Any:
        """Run and return the first row found, None where there is none."""
        if isinstance(target, Connection):
            return target.exec_driver_sql(self.sql, row).fetchone()
        target.execute(self.sql, row)
        return target.fetchone()

    def one(self, target: Any, row: Row) -> int | None:
        """Run and return the row's `seq`, None where there is none."""
        found = self.row(target, row)
        return None if found is None else int(found[0])


def inserting(
    engine: Engine,
    table: Table,
    *,
    ignore: bool = False,
    replace: Sequence[str] = (),
    returning: bool = False,
    also: Sequence[Any] = (),
) -> Statement:
    """An INSERT whose parameters are the table's columns in their declared order (without `seq`). `ignore`: a row whose
    key is there already changes nothing. `replace`: the key columns whose repetition replaces the other columns.
    `returning`: its `seq`, and what else is asked `also`."""
    insert: Any = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
    names = [column.name for column in table.columns if column.name != "seq"]
    statement = insert(table).values({name: bindparam(name) for name in names})
    if ignore:
        statement = statement.on_conflict_do_nothing()
    if replace:
        others = {name: statement.excluded[name] for name in names if name not in replace}
        statement = statement.on_conflict_do_update(index_elements=list(replace), set_=others)
    if returning:
        statement = statement.returning(table.c.seq, *also)
    return Statement(engine, statement, names)


_COMPILED: dict[tuple[Any, ...], Statements] = {}


def statements(engine: Engine) -> Statements:
    """Those of the engine's database; a process compiles them once for each kind of database."""
    dialect = engine.dialect
    kind = (dialect.name, dialect.driver, dialect.paramstyle, dialect.server_version_info)
    if kind not in _COMPILED:
        _COMPILED[kind] = Statements(engine)
    return _COMPILED[kind]


class Statements:
    """Every statement of the writing path, for one kind of database."""

    def __init__(self, engine: Engine) -> None:
        self.content = inserting(engine, schema.contents, ignore=True)
        erasures = select(func.coalesce(func.max(schema.erasures.c.seq), literal_column("0"))).scalar_subquery()
        self.trace = inserting(engine, schema.traces, ignore=True, returning=True, also=[erasures])
        known = select(schema.traces.c.runs, erasures).where(schema.traces.c.seq == bindparam("row"))
        self.erased = Statement(engine, select(erasures), [])
        of_branch = select(schema.runs.c.seq).where(
            schema.runs.c.project == bindparam("p"), schema.runs.c.thread == bindparam("t")
        )
        lock = func.pg_advisory_xact_lock(bindparam("k", type_=BigInteger))
        self.conversation = Statement(engine, select(lock), ["k"])  # PostgreSQL's alone
        self.branch = Statement(engine, of_branch, ["p", "t"])
        self.known_trace = Statement(engine, known.with_for_update(of=schema.traces), ["row"])
        run = schema.runs.c
        own = select(run.trace, run.hash).where(run.project == bindparam("p"), run.id == bindparam("i"))
        self.known_run = Statement(engine, own, ["p", "i"])
        place = schema.traces.c.project == bindparam("p"), schema.traces.c.id == bindparam("i")
        self.trace_row = Statement(engine, select(schema.traces.c.seq).where(*place).with_for_update(), ["p", "i"])
        self.group_key = inserting(engine, schema.group_keys, ignore=True)
        groups = schema.group_keys.c
        self.known_group = Statement(engine, select(groups.seq).where(groups.hash == bindparam("h")), ["h"])
        self.run = inserting(engine, schema.runs, ignore=True, returning=True)
        self.model_call = inserting(engine, schema.model_calls)
        self.tool_run = inserting(engine, schema.tool_runs)
        self.outcome = inserting(engine, schema.outcomes, replace=["trace", "name"])
        self.task = inserting(engine, schema.tasks, ignore=True)
        self.checklist = inserting(engine, schema.checklists, ignore=True)
        self.reward_version = inserting(engine, schema.reward_versions, ignore=True)
        rewards = schema.reward_versions
        of_version = select(rewards.c.seq, rewards.c.settings).where(rewards.c.version == bindparam("v"))
        self.known_reward = Statement(engine, of_version, ["v"])
        self.reward_settings = Statement(
            engine,
            update(rewards).where(rewards.c.seq == bindparam("row")).values(settings=bindparam("s")),
            ["s", "row"],
        )
        self.reward_checklist = inserting(engine, schema.reward_checklists, ignore=True)
        self.score = inserting(engine, schema.scores, replace=["trace", "reward", "runs"], returning=True)
        score = schema.scores
        of_trace = (score.c.trace == bindparam("t"), score.c.reward == bindparam("r"))
        latest = select(score.c.runs, score.c.stored).where(*of_trace).order_by(score.c.runs.desc())
        self.latest_score = Statement(engine, latest, ["t", "r"])
        turns = update(score).where(score.c.seq == bindparam("row"))
        self.score_turns = Statement(
            engine, turns.values(turns=bindparam("ts"), stored=bindparam("at")), ["ts", "at", "row"]
        )
        self.verdict = inserting(engine, schema.verdicts)
        self.label = inserting(engine, schema.labels, replace=["project", "trace", "item", "turn", "rater"])
        self.certificate = inserting(engine, schema.certificates)
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
        claim = schema.claims.c
        own_claim = (claim.project == bindparam("p"), claim.name == bindparam("n"), claim.owner == bindparam("o"))
        self.no_claim = Statement(
            engine, delete(schema.claims).where(*own_claim).returning(claim.name), ["p", "n", "o"]
        )
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
