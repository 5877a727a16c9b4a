"""`cm2 import`: other people's recordings into the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, answer, open_store, plain, tell, tracked
from cm2_agent.cli.human_labels import import_labels
from cm2_agent.errors import StoreError, TraceError

if TYPE_CHECKING:
    from cm2_agent.importers import Imported
    from cm2_agent.store import SQLStore

SHOWN = 20
"""So many broken records are told one by one; the rest are counted."""


def register(app: typer.Typer) -> None:
    words = (
        "Read recorded dialogues (tau-bench results, OpenAI chats) or people's labels into the store; safe to repeat."
    )
    app.command("import", help=words)(import_file)


def import_file(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="tau-bench, openai or labels.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON or JSON Lines file.")],
    store: StoreOption = STORE,
    checklists: Annotated[
        bool, typer.Option("--checklists", help="Give each task a checklist compiled from its gold actions.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    if format == "labels":
        import_labels(file, store, as_json=as_json)
        return
    from cm2_agent.importers import Problem, read

    records = read(format, file, checklists=checklists)
    counts = {"imported": 0, "skipped": 0, "duplicates": 0}
    notes: set[str] = set()
    first: str | None = None
    opened: SQLStore | None = None
    try:
        for record in tracked(records, "importing"):
            problem = record if isinstance(record, Problem) else None
            if not isinstance(record, Problem):
                opened = opened or open_store(store, create=True)
                try:
                    counts["imported" if _keep(opened, record, checklists) else "duplicates"] += 1
                except StoreError as error:  # this record contradicts what is stored; the others need not
                    problem = Problem(line=record.line, number=record.number, reason=str(error))
                notes |= {record.note} if record.note is not None else set()
            if problem is not None:
                counts["skipped"] += 1
                first = first or str(problem)
                if counts["skipped"] <= SHOWN:
                    tell(plain(f"{file}: {problem}; skipped"))
    finally:
        if opened is not None:
            opened.close()
    if opened is None:
        raise TraceError(
            f"{file}: none of its {counts['skipped']} records is of format {format}; nothing was stored. The first:"
            f" {first}"
        )
    if counts["skipped"] > SHOWN:
        tell(f"… and {counts['skipped'] - SHOWN} more were skipped")
    for note in sorted(notes):
        tell(plain(f"note: {note}"))
    answer(counts, as_json=as_json)


def _keep(store: SQLStore, record: Imported, checklists: bool) -> bool:
    """Whether the trace is new. Tasks are stored where checklists were asked for: a task once stored cannot get a
    checklist later, and a first import may have gone without."""
    if checklists and record.task is not None:
        store.save_task(record.task)
    return store.save_trace(record.trace)
