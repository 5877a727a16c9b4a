"""`SQLStore.erase`: erase in one transaction, rewrite the files, and look for what was erased."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from os import PathLike
from pathlib import Path

from cm2_agent.errors import StoreError
from cm2_agent.store.engine import Database
from cm2_agent.store.erased_texts import found_in, held_by
from cm2_agent.store.erasure import Chosen, Removed, erase
from cm2_agent.store.schema import metadata

POSTGRES_NOTE = (
    "PostgreSQL's write-ahead log holds what was written until it is recycled (CHECKPOINT, then its archive and"
    " replicas), and so do backups; no search from here can see them"
)


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What an erasure removed, and what looking for it afterwards found.

    Args:
        traces: The ids of the traces.
        removed: Rows by table; of `incidents` how many lost their detail.
        texts: How many texts and ids that only they held were looked for.
        searched: Where: files, or tables of a server.
        found: How many of the texts lie where, in a file or a spool: none, or the erasure is not done.
        held: How many of the texts other rows hold too, by column: other dialogues say the same.
        tasks: Tasks that quote what was erased; they are documents of their own and stay.
        notes: What no search can see.
    """

    traces: tuple[str, ...]
    removed: Mapping[str, int]
    texts: int = 0
    searched: tuple[str, ...] = ()
    found: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _DryRun(Exception):
    pass


def run_erasure(
    database: Database, wanted: Chosen, *, dry_run: bool, spool: Iterable[str | PathLike[str]]
) -> tuple[Erasure, int | None]:
    """Erase, and say what was removed and found; beside it the row of `erasures`, None where nothing was."""
    spools = [_folder(one) for one in spool]
    removed: Removed | None = None
    try:
        with database.writing() as connection:
            removed = erase(connection, wanted)
            if dry_run:
                raise _DryRun
    except _DryRun:
        pass
    assert removed is not None
    rows = {name: count for name, count in removed.rows.items() if count}
    ids, tasks = tuple(removed.traces), tuple(removed.tasks)
    if dry_run:
        return Erasure(traces=ids, removed=rows, tasks=tasks), None
    notes = database.compact(rows)
    needles = removed.texts.needles()
    with database.reading() as connection:
        held, gone = held_by(connection, needles)
    files = [*database.files(), *(file for folder in spools for file in folder.rglob("*") if file.is_file())]
    searched = [str(file) for file in files]
    if not database.sqlite:
        searched.insert(0, f"every text and binary column of {len(metadata.tables)} tables of {database.url}")
        notes = (*notes, POSTGRES_NOTE)
    found = found_in(files, gone, removed.texts.packed())
    erasure = Erasure(
        traces=ids,
        removed=rows,
        tasks=tasks,
        texts=len(gone),
        searched=tuple(searched),
        found=found,
        held=held,
        notes=tuple(notes),
    )
    return erasure, removed.erasure


def chosen(
    project: str, *, user: str | None, thread: str | None, older_than: timedelta | None, everything: bool
) -> Chosen:
    """What is to be erased. Raises StoreError where nothing was named, or everything and something."""
    named = [value for value in (user, thread, older_than) if value is not None]
    if bool(named) == everything:
        raise StoreError(
            "erase was given everything=True beside a user, thread or age; expected one or the other"
            if everything
            else "erase was given nothing to go by; expected user=, thread= or older_than=, or everything=True"
        )
    for name, value in (("user", user), ("thread", thread)):
        if value is not None and not isinstance(value, str):
            raise StoreError(f"{name} is {type(value).__name__} {value!r:.60}; expected text")
    before = None
    if older_than is not None:
        if not isinstance(older_than, timedelta) or older_than < timedelta(0):
            raise StoreError(f"older_than is {older_than!r}; expected a timedelta, such as timedelta(days=90)")
        before = time.time_ns() - int(older_than.total_seconds() * 1e9)
    return Chosen(project=project, user=user, thread=thread, before=before)


def _folder(path: str | PathLike[str]) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise StoreError(f"spool {folder} is no folder; give the one that watch(spool=…) writes to")
    return folder


__all__ = ["Erasure", "chosen", "run_erasure"]
