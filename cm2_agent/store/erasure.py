"""Erasing traces, and all that was derived from them, out of every table.

What other traces hold too (a system prompt, a greeting) stays. So do tasks, which are documents of their own: those
that quote what was erased are named. `erased_texts` proves the rest by searching."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, or_, select, text, update

from cm2_agent.store.call_addresses import stored_addresses
from cm2_agent.store.codec import body_of, dump, load, seal, split_digests, unseal
from cm2_agent.store.erased_texts import Texts
from cm2_agent.store.reader import chunks
from cm2_agent.store.received_tables import received
from cm2_agent.store.schema import (
    checkpoint_writes,
    checkpoints,
    contents,
    erasures,
    group_keys,
    incidents,
    labels,
    metadata,
    model_calls,
    outcomes,
    runs,
    scores,
    sent,
    simulations,
    tasks,
    tool_runs,
    traces,
    verdict_cache,
    verdicts,
)

TRACE_ID = 32
"""How many characters of the id of a run that a collector built name the trace of its spans."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which traces of a project are erased: those that meet every condition given. `before` is a time in nanoseconds:
    traces whose last run ended earlier."""

    project: str
    """As it is stored: sealed."""
    user: str | None = None
    thread: str | None = None
    before: int | None = None


@dataclass(kw_only=True)
class Removed:
    """What was removed: the traces' ids, rows by table, and what they said; and the tasks that quote it."""

    traces: list[str]
    texts: Texts
    rows: dict[str, int] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    erasure: int = 0
    """The row of `erasures`."""


def chosen_traces(connection: Connection, wanted: Chosen) -> dict[int, str]:
    """The rows of the chosen traces with their sealed ids, and of the branches that begin with what these hold."""
    query = select(traces.c.seq, traces.c.id).where(traces.c.project == wanted.project)
    own = select(runs.c.trace).where(runs.c.project == wanted.project)
    if wanted.user is not None:
        user = seal(wanted.user)
        query = query.where(or_(traces.c.user == user, traces.c.seq.in_(own.where(runs.c.user == user))))
    if wanted.thread is not None:
        thread = seal(wanted.thread)
        query = query.where(or_(traces.c.id == thread, traces.c.seq.in_(own.where(runs.c.thread == thread))))
    if wanted.before is not None:
        later = select(runs.c.seq).where(runs.c.trace == traces.c.seq, runs.c.ended >= wanted.before)
        query = query.where(~later.exists())
    found: dict[int, str] = {row.seq: row.id for row in connection.execute(query)}
    new = list(found.values()) if wanted.before is None else []  # a newer branch is not old enough
    while new:
        branches: dict[int, str] = {}
        for chunk in chunks(new):
            of_parents = select(traces.c.seq, traces.c.id).join(runs, runs.c.trace == traces.c.seq)
            of_parents = of_parents.where(traces.c.project == wanted.project, runs.c.branch_parent.in_(chunk))
            branches.update({row.seq: row.id for row in connection.execute(of_parents) if row.seq not in found})
        found.update(branches)
        new = list(branches.values())
    return found


def erase(connection: Connection, wanted: Chosen) -> Removed:
    """Remove the chosen traces and what was derived from them, within the connection's transaction."""
    if connection.dialect.name == "postgresql":  # nobody may build on what goes
        names = ", ".join(table.name for table in metadata.sorted_tables if table is not tasks)
        connection.execute(text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    else:
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    found = chosen_traces(connection, wanted)
    work = _Work(connection, wanted, found)
    work.remove_traces()
    work.remove_derived()
    row = {"erased": time.time_ns(), "removed": dump(work.removed.rows, "what was removed")}
    statement = erasures.insert().values(**row).returning(erasures.c.seq)
    work.removed.erasure = int(connection.execute(statement).scalar_one())
    return work.removed


class _Work:
    """One erasure under way."""

    def __init__(self, connection: Connection, wanted: Chosen, found: dict[int, str]) -> None:
        self._connection = connection
        self._wanted = wanted
        self._seqs = list(found)
        self._received: set[str] = set()
        self._ids = list(found.values())
        self._texts = Texts()
        self._threads = set(self._ids)
        if wanted.thread is not None:
            self._threads.add(seal(wanted.thread))
        self.removed = Removed(traces=[unseal(id) for id in self._ids], texts=self._texts)
        for id in (wanted.user, wanted.thread, *self.removed.traces):
            self._texts.add_id(id)

    def remove_traces(self) -> None:
        """The traces themselves, scores and outcomes, and the contents that only they held."""
        digests: set[bytes] = set()
        run_seqs = []
        for row in self._rows(runs, runs.c.trace, self._seqs):
            run_seqs.append(row.seq)
            self._received.add(row.id[:TRACE_ID])
            digests.update(split_digests((row.history or b"") + row.messages))
            for id in (row.id, row.thread, row.user, row.session):
                self._texts.add_id(None if id is None else unseal(id))
            if row.thread is not None:
                self._threads.add(row.thread)
            self._texts.add_json(row.input, row.output, row.attributes)
            self._texts.add(row.failure_message)
        for row in self._rows(model_calls, model_calls.c.run, run_seqs):
            digests.update(stored_addresses(row.input, row.output, row.toolset))
            self._texts.add(row.error)
        for row in self._rows(tool_runs, tool_runs.c.run, run_seqs):
            self._texts.add_json(row.arguments, row.result, row.artifact)
            self._texts.add(row.error)
        score_seqs = [row.seq for row in self._rows(scores, scores.c.trace, self._seqs)]
        for row in self._rows(verdicts, verdicts.c.score, score_seqs):
            self._texts.add(row.explanation)
            self._texts.add_json(row.evidence)
        groups = sorted({row.group_key for row in self._rows(traces, traces.c.seq, self._seqs)} - {None})
        self._delete(verdicts, verdicts.c.score, score_seqs)
        self._delete(scores, scores.c.seq, score_seqs)
        self._delete(outcomes, outcomes.c.trace, self._seqs)
        self._delete(model_calls, model_calls.c.run, run_seqs)
        self._delete(tool_runs, tool_runs.c.run, run_seqs)
        self._delete(runs, runs.c.seq, run_seqs)
        self._delete(traces, traces.c.seq, self._seqs)
        unused = ~select(traces.c.seq).where(traces.c.group_key == group_keys.c.seq).exists()
        self._delete(group_keys, group_keys.c.seq, groups, unused)
        gone = self._unreferenced(digests)
        for row in self._rows(contents, contents.c.hash, gone):
            self._texts.add_json(body_of(row))
            self._texts.add_packed(row.packed)
        self._delete(contents, contents.c.hash, gone)

    def remove_derived(self) -> None:
        """What people and judges said of them, where it was sent, what simulators answered, and dialogues under way."""
        own = labels.c.project == self._wanted.project
        for row in self._rows(labels, labels.c.trace, self._ids, own):
            self._texts.add(row.note)
        self._delete(labels, labels.c.trace, self._ids, own)
        self._delete(sent, sent.c.trace, self._ids, sent.c.project == self._wanted.project)
        for table in (checkpoint_writes, checkpoints):
            self._delete(table, table.c.thread, self._threads_under_way(), table.c.project == self._wanted.project)
        own = received.c.project == self._wanted.project
        self._delete(received, received.c.trace, self._received_traces(), own)
        self._delete(verdict_cache, verdict_cache.c.key, [row.key for row in self._quoting(verdict_cache)])
        self._delete(simulations, simulations.c.key, [row.key for row in self._quoting(simulations)])
        quoting = [row.kind for row in self._rows(incidents) if self._texts.quoted_in(row.detail)]
        for kind in quoting:
            self._connection.execute(update(incidents).where(incidents.c.kind == kind).values(detail=""))
        self.removed.rows["incidents"] = len(quoting)
        self.removed.tasks = [f"{unseal(row.id)} (version {row.version})" for row in self._quoting(tasks)]

    def _threads_under_way(self) -> list[str]:
        """The threads of the erased traces; where whole projects or old dialogues go, all those that fit."""
        wanted = self._wanted
        if wanted.user is not None or wanted.thread is not None:
            return sorted(self._threads)
        query = select(checkpoints.c.thread).where(checkpoints.c.project == wanted.project).distinct()
        if wanted.before is not None:
            query = query.where(checkpoints.c.stored < wanted.before)
        return sorted({*self._connection.scalars(query), *self._threads})

    def _received_traces(self) -> list[str]:
        """The traces whose received spans go: those of the erased runs; where whole projects or old dialogues go, all
        that fit."""
        wanted = self._wanted
        if wanted.user is not None or wanted.thread is not None:
            return sorted(self._received)
        query = select(received.c.trace).where(received.c.project == wanted.project).distinct()
        if wanted.before is not None:
            query = query.where(received.c.stored < wanted.before)
        return sorted({*self._connection.scalars(query), *self._received})

    def _unreferenced(self, digests: set[bytes]) -> list[bytes]:
        """Those of the contents that no stored trace refers to any more, and the tools of such lists of tools."""
        if not digests:
            return []
        gone = set(digests)
        for messages, history in self._connection.execute(select(runs.c.messages, runs.c.history)):
            gone.difference_update(split_digests((history or b"") + messages))
        of_calls = select(model_calls.c.input, model_calls.c.output, model_calls.c.toolset)
        for shown, output, toolset in self._connection.execute(of_calls):
            gone.difference_update(stored_addresses(shown, output, toolset))
        tools: set[bytes] = set()
        for row in self._rows(contents, contents.c.hash, sorted(gone), contents.c.kind == "toolset"):
            tools.update(bytes.fromhex(tool) for tool in load(body_of(row)))
        for row in self._rows(contents, None, (), contents.c.kind == "toolset") if tools else ():
            if bytes(row.hash) not in gone:
                tools.difference_update(bytes.fromhex(tool) for tool in load(body_of(row)))
        return sorted(gone | tools)

    def _quoting(self, table: Table) -> Iterable[Any]:
        """The rows whose body holds what was erased."""
        return [row for row in self._rows(table) if self._texts.shared_with(row.body)]

    def _rows(
        self, table: Table, key: Any = None, values: Sequence[Any] = (), *where: ColumnElement[bool]
    ) -> Iterable[Any]:
        if key is None:
            yield from self._connection.execute(select(table).where(*where))
            return
        for chunk in chunks(values):
            yield from self._connection.execute(select(table).where(key.in_(chunk), *where)).all()

    def _delete(self, table: Table, key: Any, values: Sequence[Any], *where: ColumnElement[bool]) -> None:
        done = 0
        for chunk in chunks(values):
            done += self._connection.execute(delete(table).where(key.in_(chunk), *where)).rowcount
        self.removed.rows[table.name] = self.removed.rows.get(table.name, 0) + done
