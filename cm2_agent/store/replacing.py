"""A stored run put in the place of another: what a span that came late makes of the run that it belongs to.

The calls of a trace share their beginnings, so the whole trace is written anew, in one transaction. Scores stay, and
are replaced when the trace is scored again."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, delete, select, update

from cm2_agent.errors import StoreError
from cm2_agent.store.codec import dump, seal
from cm2_agent.store.dialogue_key import START, extended
from cm2_agent.store.encoder import PackedRun, Packer
from cm2_agent.store.reader import Reader
from cm2_agent.store.schema import erasures, model_calls, runs, tool_runs, traces
from cm2_agent.store.trace_state import Caches
from cm2_agent.store.writer import Writer
from cm2_agent.types.run import Run


def replace_run(connection: Connection, writer: Writer, caches: Caches, project: str, run: Run) -> str:
    """Put the run in the place of the stored one of its id, within the connection's transaction, and return the id of
    its trace. Every process forgets what it knows of stored traces, as after an erasure. Raises StoreError where no
    such run is stored."""
    where = (runs.c.project == project, runs.c.id == seal(run.id))
    trace = connection.scalar(select(runs.c.trace).where(*where))
    if trace is None:
        raise StoreError(f"there is no run {run.id!r} to replace; save_run stores it")
    stored = Reader(connection).traces([trace])[0]
    keyed = connection.execute(select(runs.c.id, runs.c.dialogue).where(runs.c.trace == trace)).all()
    asked = {row.id: row.dialogue for row in keyed}
    own = select(runs.c.seq).where(runs.c.trace == trace)
    for table in (model_calls, tool_runs):
        connection.execute(delete(table).where(table.c.run.in_(own)))
    connection.execute(delete(runs).where(runs.c.trace == trace))
    connection.execute(update(traces).where(traces.c.seq == trace).values(runs=0))
    note: dict[str, Any] = {"erased": time.time_ns(), "removed": dump({"replaced_runs": 1}, "what was replaced")}
    caches.forget(connection.execute(erasures.insert().values(**note).returning(erasures.c.seq)).scalar_one())
    packer = Packer(caches.contents)
    packed: list[PackedRun] = []
    said = START
    for old in stored.runs:
        new = old
        if old.id == run.id:  # where it goes on with its trace, the runs before it hold what it was shown
            history = run.history if old.history or not packed else ()
            new = replace(run, trace=old.trace, branch=old.branch, history=history)
        said = extended(said, (*new.history, *new.messages))
        one = packer.pack(new)
        packed.append(one if asked.get(one.id) is None else replace(one, dialogue=said))
    loaded = writer.load(connection, packed)
    writer.write(connection, packed, packer.contents, loaded=loaded)
    return stored.id


__all__ = ["replace_run"]
