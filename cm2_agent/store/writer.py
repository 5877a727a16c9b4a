"""Encoded runs into the tables, within one transaction.

The order of locks is the same for every writer (traces, group keys, contents, each sorted), so that writers on
PostgreSQL wait for each other and never deadlock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store.codec import (
    address,
    dump,
    dump_mapping,
    dump_tags,
    load,
    load_tags,
    seal,
    sealed,
    split_digests,
    unsealed,
)
from cm2_agent.store.encoder import CANDIDATES, Base, PackedRun
from cm2_agent.store.reader import bases, branch_of
from cm2_agent.store.schema import group_keys, model_calls, runs, traces
from cm2_agent.store.statements import Row, Statements
from cm2_agent.types.group import group_key
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import ROLLOUT
from cm2_agent.types.trace import Trace

KNOWN_CONTENTS = 65_536
KNOWN_TAILS = 256


@dataclass
class Caches:
    """What a process knows to be stored. Filled after a commit only, bounded, and never needed for being right."""

    contents: dict[bytes, None] = field(default_factory=dict)
    group_keys: dict[bytes, int] = field(default_factory=dict)
    tails: dict[str, tuple[int, list[Base]]] = field(default_factory=dict)
    """The last calls of a trace, and how many runs it had then: another process may have gone on."""

    def learn(self, other: Caches) -> None:
        for own, more, limit in (
            (self.contents, other.contents, KNOWN_CONTENTS),
            (self.group_keys, other.group_keys, KNOWN_CONTENTS),
            (self.tails, other.tails, KNOWN_TAILS),
        ):
            known: dict[object, object] = own  # type: ignore[assignment]
            if len(known) + len(more) > limit:
                known.clear()
            known.update(more)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class WriteResult:
    """What a write did: how many runs were new, the `seq` of each trace by its id, and what to remember once it is
    committed."""

    new: int
    traces: Mapping[str, int]
    learned: Caches


class NameTaken(Exception):
    """A trace that was to begin is there already: it was given to another conversation since the name was chosen."""


class Writer:
    """Writes packed runs; holds nothing but the statements and what is known to be stored."""

    def __init__(self, statements: Statements, caches: Caches, *, project: str, sqlite: bool) -> None:
        self._do = statements
        self._known = caches
        self._project = project
        self._sqlite = sqlite

    def write(
        self,
        connection: Connection,
        packed: Sequence[PackedRun],
        contents: Mapping[bytes, tuple[str, str]],
        empty: str | None = None,
    ) -> WriteResult:
        """Write what is not stored yet. `empty` names a trace to note even without runs. Raises ConflictError where a
        run of that id is stored with other content."""
        by_trace: dict[str, list[PackedRun]] = {} if empty is None else {seal(empty): []}
        for run in packed:
            by_trace.setdefault(run.trace_id, []).append(run)
        learned = Caches()
        plans = [self._plan(connection, trace_id, by_trace[trace_id]) for trace_id in sorted(by_trace)]
        self._describe(connection, plans, learned)
        if any(plan.new for plan in plans):
            missing = sorted(contents.keys() - self._known.contents.keys())
            self._do.content.many(connection, [(key, *contents[key]) for key in missing])
            learned.contents.update(dict.fromkeys(missing))
        calls: list[Row] = []
        tools: list[Row] = []
        for plan in plans:
            tail = list(plan.tail)
            for run in plan.new:
                calls += self._run(connection, plan, run, tail, tools)
            if plan.new:
                learned.tails[plan.trace_id] = (len(plan.runs), tail[-CANDIDATES:])
        self._do.model_call.many(connection, calls)
        self._do.tool_run.many(connection, tools)
        return WriteResult(
            new=sum(len(plan.new) for plan in plans),
            traces={plan.trace_id: plan.seq for plan in plans},
            learned=learned,
        )

    def _plan(self, connection: Connection, trace_id: str, given: Sequence[PackedRun]) -> _Plan:
        """Lock the trace and find which of its runs are new."""
        seq = self._do.trace.one(connection, (self._project, trace_id, 0, 0, *(None,) * 8))
        if seq is None and any(run.begins for run in given):
            raise NameTaken
        if seq is not None:
            new = _distinct(given)
            return _Plan(trace_id=trace_id, seq=seq, new=new, runs=[run.run for run in new])
        query = select(traces.c.seq).where(traces.c.project == self._project, traces.c.id == trace_id)
        seq = connection.execute(query if self._sqlite else query.with_for_update()).scalar_one()
        stored = connection.execute(
            select(
                *(runs.c.seq, runs.c.id, runs.c.hash, runs.c.started, runs.c.attributes, runs.c.messages),
                *(runs.c.history, runs.c.user, runs.c.session, runs.c.tags),
                *(runs.c.branch_parent, runs.c.branch_messages, runs.c.branch_reason),
            )
            .where(runs.c.trace == seq)
            .order_by(runs.c.seq)
        ).all()
        hashes = {row.id: row.hash for row in stored}
        new = []
        for run in _distinct(given):
            if run.id not in hashes:
                new.append(run)
            elif hashes[run.id] != run.hash:
                raise _conflict(run.run.id)
        if not new:
            return _Plan(trace_id=trace_id, seq=seq, new=[], runs=[])
        count, tail = self._known.tails.get(trace_id, (0, []))
        return _Plan(
            trace_id=trace_id,
            seq=seq,
            new=new,
            runs=[*self._stored(connection, seq, stored), *(run.run for run in new)],
            tail=tail if count == len(stored) else bases(connection, seq)[-CANDIDATES:],
            said=[(row.started, (row.history or b"") + row.messages) for row in stored],
        )

    def _stored(self, connection: Connection, trace: int, rows: Sequence[Any]) -> list[Run]:
        """As much of the stored runs as tells the trace's facts: attributes, and the settings of the calls that wrote
        the dialogue."""
        columns = (model_calls.c.run, model_calls.c.model_version, model_calls.c.sampling)
        query = select(*columns).join(runs, runs.c.seq == model_calls.c.run)
        calls: dict[int, list[ModelCall]] = {}
        for row in connection.execute(
            query.where(runs.c.trace == trace, model_calls.c.message.is_not(None)).distinct()
        ):
            call = ModelCall(
                span_id="", model_version=unsealed(row.model_version), sampling=load(row.sampling), message=0
            )
            calls.setdefault(row.run, []).append(call)
        return [
            Run(
                id=row.id,
                started=row.started,
                attributes=load(row.attributes),
                branch=branch_of(row),
                user=unsealed(row.user),
                session=unsealed(row.session),
                tags=load_tags(row.tags),
                calls=tuple(calls.get(row.seq, ())),
            )
            for row in rows
        ]

    def _describe(self, connection: Connection, plans: Sequence[_Plan], learned: Caches) -> None:
        """The facts of each changed trace: when it began, its task, policy, group and rollout number."""
        described = [(plan, *_facts(plan.trace_id, plan.runs)) for plan in plans if plan.new]
        keys: dict[bytes, Row] = {}
        for _, trace, key in described:
            if key is not None:
                digest = address(key, f"trace {trace.id!r}: what it shares with its group")
                keys[digest] = (digest, seal(str(key["task"])), sealed(key["policy"]), dump(key, "the group's key"))
        missing = sorted(keys.keys() - self._known.group_keys.keys())
        self._do.group_key.many(connection, [keys[digest] for digest in missing])
        if missing:
            found = select(group_keys.c.hash, group_keys.c.seq).where(group_keys.c.hash.in_(missing))
            learned.group_keys.update({bytes(row.hash): row.seq for row in connection.execute(found)})
        for plan, trace, key in described:
            seq = None
            if key is not None:
                digest = address(key, "the group's key")
                seq = learned.group_keys.get(digest) or self._known.group_keys[digest]
            rollout = trace.attributes.get(ROLLOUT)
            number = rollout if type(rollout) is int and abs(rollout) < 2**63 else None
            facts = (trace.runs[0].started, len(trace.runs), sealed(trace.task_id), sealed(trace.policy), seq, number)
            self._do.trace_facts.many(connection, [(*facts, *_given(trace), plan.seq)])

    def _run(
        self, connection: Connection, plan: _Plan, run: PackedRun, tail: list[Base], tools: list[Row]
    ) -> list[Row]:
        history = b"" if run.history and plan.holds(run) else run.history
        plan.said.append((run.run.started, history + run.messages))
        try:
            seq = self._do.run.one(connection, run.row(self._project, plan.seq, history))
        except IntegrityError as error:
            raise _conflict(run.run.id) from error
        assert seq is not None
        rows = []
        for position, call in enumerate(run.calls):
            rows.append(call.row(seq, position, tail[-CANDIDATES:]))
            tail.append(call.as_base(position)._replace(run=seq))
        tools += [(seq, position, *facts) for position, facts in enumerate(run.tools)]
        return rows


def require_one_trace(runs: Sequence[Run], trace_id: str) -> None:
    """Raises StoreError where a run belongs to another trace."""
    other = next((run for run in runs if run.trace_id != trace_id), None)
    if other is not None:
        raise StoreError(
            f"run {other.id!r} belongs to trace {other.trace_id!r}, not to {trace_id!r}; expected runs of one thread"
        )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    trace_id: str
    seq: int
    new: Sequence[PackedRun]
    runs: Sequence[Run]
    """All runs of the trace that tell its facts, in the order of storing; empty where nothing is new."""
    tail: Sequence[Base] = ()
    said: list[tuple[int, bytes]] = field(default_factory=list)
    """Of each run that is stored: its start, and the addresses of what it was shown and added."""

    def holds(self, run: PackedRun) -> bool:
        """Whether the trace's earlier runs hold all that this one was shown; a trace's first run has none before it."""
        earlier = [said for started, said in self.said if started <= run.run.started]
        return bool(earlier) and {*split_digests(run.history)} <= {*split_digests(b"".join(earlier))}


def _given(trace: Trace) -> tuple[str | None, ...]:
    """Who the trace was of and what the caller called it: of each the last that a run gave."""
    runs = trace.runs[::-1]
    user = next((run.user for run in runs if run.user is not None), None)
    session = next((run.session for run in runs if run.session is not None), None)
    tags = next((run.tags for run in runs if run.tags), None)
    metadata = {name: value for name, value in trace.attributes.items() if not name.startswith("cm2.")}
    where = f"trace {trace.id!r}"
    return (
        sealed(user),
        sealed(session),
        None if tags is None else dump_tags(tags, where),
        dump_mapping(metadata, f"{where}: metadata") if metadata else None,
    )


def _facts(trace_id: str, stored: Iterable[Run]) -> tuple[Trace, dict[str, JSON] | None]:
    trace = Trace(id=trace_id, runs=tuple(sorted(stored, key=lambda run: run.started)))
    try:
        key = group_key(trace, "")
    except (TypeError, ValueError) as error:
        raise StoreError(f"trace {trace_id!r}: sampling settings are not JSON: {error}") from error
    if key is not None:
        del key["reward"]
    return trace, key


def _distinct(given: Sequence[PackedRun]) -> list[PackedRun]:
    """The runs without repetitions."""
    first: dict[str, PackedRun] = {}
    for run in given:
        if first.setdefault(run.id, run).hash != run.hash:
            raise _conflict(run.run.id)
    return list(first.values())


def _conflict(run: str) -> ConflictError:
    return ConflictError(
        f"run {run!r} is stored already with other content, or in another trace; expected the same content (saving"
        " again changes nothing). Give what is new its own run id"
    )
