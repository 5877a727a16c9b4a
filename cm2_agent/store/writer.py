"""Encoded runs into the tables, within one transaction.

A run of a new trace, or of one whose state this process remembers, is written by a few statements whatever the trace's
length. Where the state is not known, or another process has gone on, `Stale` is raised before anything is committed:
`load` then reads what is stored, and the write is done again.

The order of locks is the same for every writer (traces, group keys, contents, each sorted), so that writers on
PostgreSQL wait for each other and never deadlock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, select

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store.codec import load, load_tags, seal, split_digests, unsealed
from cm2_agent.store.content import Content
from cm2_agent.store.encoder import CANDIDATES, PackedRun
from cm2_agent.store.lineage import quick_place
from cm2_agent.store.lines import lock_keys
from cm2_agent.store.reader import bases, branch_of, states_of
from cm2_agent.store.schema import model_calls, runs, traces
from cm2_agent.store.statements import Row, Statements
from cm2_agent.store.trace_state import Caches, Stale, TraceState, state_of
from cm2_agent.types.run import ModelCall, Run


@dataclass(frozen=True, kw_only=True)
class WriteResult:
    """What a write did: how many runs were new, the state of each trace by its id, and which contents and groups it
    stored, to be learned once it is committed."""

    new: int
    traces: Mapping[str, TraceState]
    contents: Sequence[bytes]
    group_keys: Mapping[bytes, int]


class Writer:
    """Writes packed runs; holds nothing but the statements and what is known to be stored."""

    def __init__(self, statements: Statements, caches: Caches, *, project: str, sqlite: bool) -> None:
        self._do = statements
        self._known = caches
        self._project = project
        self._sqlite = sqlite

    def write(
        self,
        cursor: Any,
        packed: Sequence[PackedRun],
        contents: Mapping[bytes, Content],
        *,
        empty: str | None = None,
        place: bool = False,
        loaded: Mapping[str, _Loaded] | None = None,
    ) -> WriteResult:
        """Write what is not stored yet. `empty` names a trace to note even without runs; `place`: the runs have yet to
        get their place (`lineage`). Raises Stale, and ConflictError where a run of that id is stored with other
        content."""
        group_keys: dict[bytes, int] = {}
        calls: list[Row] = []
        tools: list[Row] = []
        states: dict[str, TraceState] = {}
        new = 0
        given = by_trace(packed, empty)
        if place and not self._sqlite:
            for key in lock_keys(self._project, (run.run.thread for run in packed if run.run.thread is not None)):
                self._do.conversation.row(cursor, (key,))
        for trace_id in sorted(given):
            if loaded is not None and trace_id in loaded:
                stored = loaded[trace_id]
                self._require_known(cursor, stored.state.seq, stored.runs)
                state, fresh = stored.state, stored.new
            else:
                state, fresh = self._open(cursor, trace_id, given[trace_id], place=place)
            states[trace_id] = state
            new += len(fresh)
            if fresh or state.seq == 0:
                self._describe(cursor, state, group_keys)
            for run in fresh:
                self._run(cursor, state, run, calls, tools, sure=not place)
        added: list[bytes] = []
        if new:
            added = sorted(self._known.contents.missing(contents))
            self._do.content.many(cursor, [contents[digest].row(digest) for digest in added])
        self._do.model_call.many(cursor, calls)
        self._do.tool_run.many(cursor, tools)
        return WriteResult(new=new, traces=states, contents=added, group_keys=group_keys)

    def _open(
        self, cursor: Any, trace_id: str, given: Sequence[PackedRun], *, place: bool
    ) -> tuple[TraceState, list[PackedRun]]:
        """The state of the trace with its new runs, and these as they are stored."""
        state = self._known.take(trace_id) or TraceState(id=trace_id)
        if state.seq:
            self._require_known(cursor, state.seq, state.runs)
        new = [
            run for run in _distinct(given) if not (state.seq and self._repeats(cursor, state.seq, run, sure=not place))
        ]
        starts = [state.last] * (state.runs > 0) + [run.run.started for run in new]
        threaded = place and new and new[0].run.thread is not None
        if threaded and self._do.branch.row(cursor, (self._project, trace_id)) is not None:
            raise Stale  # there are branches to choose from
        if all(one <= next for one, next in pairwise(starts)):
            return state, [_take_note(state, run, place=place) for run in new]
        if state.seq or place:
            raise Stale  # a run that began before others changes what the trace is said to be
        return _with_new(state_of(trace_id, 0, (), new), [], new)

    def _require_known(self, cursor: Any, seq: int, count: int) -> None:
        """Lock a trace. Raises Stale where it has other runs than that many, or something was erased."""
        found = self._do.known_trace.row(cursor, (seq,))
        if found is None or found[0] != count or found[1] != self._known.erasures:
            raise Stale(None if found is None else found[1])

    def _repeats(self, cursor: Any, trace: int, run: PackedRun, *, sure: bool) -> bool:
        """Whether the run is stored. Raises ConflictError where it is with other content, or in another trace though
        its own is `sure`, and else Stale."""
        found = self._do.known_run.row(cursor, (self._project, run.id))
        if found is None:
            return False
        if bytes(found[1]) != run.hash or (found[0] != trace and sure):
            raise _conflict(run.run.id)
        if found[0] != trace:
            raise Stale
        return True

    def _describe(self, cursor: Any, state: TraceState, group_keys: dict[bytes, int]) -> None:
        """Write the trace's facts: when it began, its task, policy, group and rollout number, whose it is."""
        group = state.group()
        if state.seq == 0:
            facts = state.facts(None) if group is None else (0, 0, *(None,) * 8)
            found = self._do.trace.row(cursor, (self._project, state.id, *facts))
            if found is None:
                raise Stale
            if found[1] != self._known.erasures:
                raise Stale(found[1])
            state.seq = found[0]
            if group is None:
                return
        seq = None
        if group is not None:
            digest, row = group
            seq = group_keys.get(digest) or self._known.group_keys.get(digest)
            if seq is None:
                self._do.group_key.many(cursor, [row])
                seq = group_keys[digest] = self._do.known_group.row(cursor, (digest,))[0]
        self._do.trace_facts.many(cursor, [(*state.facts(seq), state.seq)])

    def _run(
        self,
        cursor: Any,
        state: TraceState,
        run: PackedRun,
        calls: list[Row],
        tools: list[Row],
        *,
        sure: bool,
    ) -> None:
        seq = self._do.run.one(cursor, run.row(self._project, state.seq))
        if seq is None:  # a run of that id in another trace, or stored meanwhile
            self._repeats(cursor, state.seq, run, sure=sure)
            raise Stale
        for position, call in enumerate(run.calls):
            calls.append(call.row(seq, position, state.tail[-CANDIDATES:], run.messages))
            state.tail.append(call.as_base(position, seq))
        tools += run.tool_rows(seq)

    def load(self, connection: Connection, packed: Sequence[PackedRun], empty: str | None = None) -> dict[str, _Loaded]:
        """Lock these traces, and read of each that is stored which runs are new, and its state with them."""
        if (erasures := self._do.erased.one(connection, ()) or 0) != self._known.erasures:
            raise Stale(erasures)
        found: dict[str, _Loaded] = {}
        given = by_trace(packed, empty)
        for trace_id in sorted(given):
            query = select(traces.c.seq).where(traces.c.project == self._project, traces.c.id == trace_id)
            seq = connection.scalar(query if self._sqlite else query.with_for_update())
            if seq is not None and any(run.begins for run in given[trace_id]):
                raise Stale  # its name was given away meanwhile
            if seq is not None:
                found[trace_id] = self._load(connection, trace_id, seq, _distinct(given[trace_id]))
        return found

    def _load(self, connection: Connection, trace_id: str, seq: int, given: Sequence[PackedRun]) -> _Loaded:
        rows = connection.execute(
            select(
                *(runs.c.seq, runs.c.id, runs.c.hash, runs.c.started, runs.c.attributes, runs.c.messages),
                *(runs.c.history, runs.c.user, runs.c.session, runs.c.tags, runs.c.states, runs.c.dialogue),
                *(runs.c.branch_parent, runs.c.branch_messages, runs.c.branch_reason),
            )
            .where(runs.c.trace == seq)
            .order_by(runs.c.seq)
        ).all()
        hashes = {row.id: bytes(row.hash) for row in rows}
        new = []
        for run in given:
            if run.id not in hashes:
                new.append(run)
            elif hashes[run.id] != run.hash:
                raise _conflict(run.run.id)
        state = state_of(trace_id, seq, self._stored(connection, seq, rows), new)
        state.tail = bases(connection, seq, CANDIDATES)
        spoken = [(row.started, (row.history or b"") + row.messages) for row in rows]
        state, placed = _with_new(state, spoken, new)
        return _Loaded(runs=len(rows), state=state, new=placed)

    def _stored(self, connection: Connection, trace: int, rows: Sequence[Any]) -> list[tuple[Run, bytes | None]]:
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
            (
                Run(
                    id=row.id,
                    started=row.started,
                    attributes=load(row.attributes),
                    branch=branch_of(row),
                    states=states_of(row),
                    user=unsealed(row.user),
                    session=unsealed(row.session),
                    tags=load_tags(row.tags),
                    calls=tuple(calls.get(row.seq, ())),
                ),
                None if row.dialogue is None else bytes(row.dialogue),
            )
            for row in rows
        ]


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A stored trace: how many runs it has; its state with the new ones, and these as they are stored."""

    runs: int
    state: TraceState
    new: list[PackedRun]


def _take_note(state: TraceState, run: PackedRun, *, place: bool) -> PackedRun:
    """Add the trace's next run to its state; returns the run as it is stored. Raises Stale where it takes a look at the
    stored conversation to place it."""
    if place:
        placed = quick_place(run, state.runs, state.began, state.end, state.dialogue)
        if placed is None:
            raise Stale
        run = placed
    if run.history and state.holds(run.history):
        run = replace(run, history=b"")
    state.add(run.run, run.dialogue)
    state.said.update(split_digests(run.history + run.messages))
    return run


def _with_new(
    state: TraceState, spoken: list[tuple[int, bytes]], new: Sequence[PackedRun]
) -> tuple[TraceState, list[PackedRun]]:
    """The state of all runs with what they said, and the new ones as they are stored: without a history that earlier
    runs hold. `spoken` holds the start of each stored run, and what it was shown and added."""
    stored = []
    for run in new:
        earlier = [said for started, said in spoken if started <= run.run.started]
        held = bool(earlier) and {*split_digests(b"".join(earlier))}.issuperset(split_digests(run.history))
        stored.append(replace(run, history=b"") if held and run.history else run)
        spoken.append((run.run.started, stored[-1].history + run.messages))
    state.said.update(split_digests(b"".join(said for _, said in spoken)))
    return state, stored


def by_trace(packed: Sequence[PackedRun], empty: str | None) -> dict[str, list[PackedRun]]:
    """The runs of each trace by its sealed id, and none of the empty one."""
    given: dict[str, list[PackedRun]] = {} if empty is None else {seal(empty): []}
    for run in packed:
        given.setdefault(run.trace_id, []).append(run)
    return given


def require_one_trace(runs: Sequence[Run], trace_id: str) -> None:
    """Raises StoreError where a run belongs to another trace."""
    other = next((run for run in runs if run.trace_id != trace_id), None)
    if other is not None:
        raise StoreError(
            f"run {other.id!r} belongs to trace {other.trace_id!r}, not to {trace_id!r}; expected runs of one thread"
        )


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
