"""`cm2 traces`: erase stored traces, with all that was derived from them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    command_group,
    echo_err,
    open_store,
    print_result,
    printable,
)
from cm2_agent.cli.redaction import SECRET
from cm2_agent.cli.times import age
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.store import Erasure, SQLStore

_SHOWN = 20


def register(app: typer.Typer) -> None:
    group = command_group("Erase stored traces.")

    help = (
        "Erase traces that meet every condition, or with --project alone all of its traces, and all that was derived"
        " from them. The files are then rewritten and searched for what was erased. Exits 1 where some of it is found."
    )
    group.command("erase", help=help, short_help="Erase traces, and search the files for them.")(erase)
    app.add_typer(group, name="traces")


def erase(
    context: typer.Context,
    user: Annotated[str | None, typer.Option("--user", help="Traces of this user.")] = None,
    thread: Annotated[
        str | None, typer.Option("--thread", help="The trace of this conversation, and its branches.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Traces that ended longer ago, such as 90d, 12h or 30m."),
    ] = None,
    spool: Annotated[
        list[Path] | None,
        typer.Option("--spool", metavar="FOLDER", help="Search this spool too (default: the store's own)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    named = getattr(context.get_parameter_source("project"), "name", "") == "COMMANDLINE"
    everything = user is None and thread is None and older_than is None
    if everything and not named:
        raise StoreError("nothing was named; give --user, --thread or --older-than, or --project alone for all of it")
    wanted: dict[str, Any] = {
        "user": user,
        "thread": thread,
        "older_than": None if older_than is None else age(older_than),
        "everything": everything,
    }
    _take_up(store, spool, dry_run=dry_run)
    with open_store(store, project=project) as opened:
        wanted, unfound = _as_stored(opened, wanted)
        if not dry_run and not yes:
            planned = opened.erase(**wanted, dry_run=True)
            for line in _removed(planned, "would be removed"):
                echo_err(line)
            if not typer.confirm(f"Erase {len(planned.traces)} traces? They cannot be restored.", err=True):
                echo_err("nothing was erased")
                raise typer.Exit(1)
        erasure = opened.erase(**wanted, dry_run=dry_run, spool=() if dry_run else spool or _own_spool(store))
    result = {
        "dry_run": dry_run,
        "traces": list(erasure.traces),
        "removed": dict(erasure.removed),
        "tasks": list(erasure.tasks),
        "texts": erasure.texts,
        "searched": list(erasure.searched),
        "found": dict(erasure.found),
        "held": dict(erasure.held),
        "notes": [*erasure.notes, *unfound],
    }
    print_result(result, as_json=as_json, lines=_lines(erasure, dry_run))
    if erasure.found:
        echo_err(
            "some of it is still there: a file of a running application goes when that ends; end it, and erase again."
            " What could not be stored (refused.jsonl, *.unreadable) is yours to remove"
        )
        raise typer.Exit(1)


def _as_stored(store: SQLStore, wanted: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The ids as a redactor stored them, where none is stored as it was given: a user's id that is an e-mail address.
    And a note where they are not stored either: the redactor may have had another key."""
    named = {key: value for key in ("user", "thread") if (value := wanted[key]) is not None}
    if not named or store.erase(**wanted, dry_run=True).traces:
        return wanted, []
    from cm2_agent.datasets import Redactor

    secret = os.environ.get(SECRET)
    redactor = Redactor(key=None if secret is None else secret.encode())
    stored = {key: redactor.redact_id(value) for key, value in named.items()}
    if stored == named:
        return wanted, []
    echo_err(f"nothing is stored by that id; what a redactor makes of it is looked for (the key: {SECRET})")
    wanted |= stored
    if store.erase(**wanted, dry_run=True).traces:
        return wanted, []
    with_key = f"without a key, since {SECRET} is not set" if secret is None else f"with the key in {SECRET}"
    note = (
        f"nothing is stored by what a redactor makes of that id {with_key}; what was redacted with another key is not"
        f" found: set {SECRET} to the application's, and erase again"
    )
    echo_err(note)
    return wanted, [note]


def _take_up(store: str, spools: list[Path] | None, *, dry_run: bool) -> None:
    """Save what ended processes left in the spools, so that it is erased too and does not come back."""
    from cm2_agent.online.leftovers import save_leftovers
    from cm2_agent.spool.status import read_status

    for folder in [str(one) for one in spools] if spools else [None]:
        if not dry_run:
            save_leftovers(store, folder)
        elif waiting := sum(read_status(store, folder).runs.values()):
            echo_err(
                f"{waiting} runs of ended processes wait in the spool; they are stored first, and erased like others"
            )


def _own_spool(store: str) -> list[Path]:
    from cm2_agent.spool.folder import default_folder

    folder = default_folder(store)
    return [Path(folder)] if folder is not None and Path(folder).is_dir() else []


def _lines(erasure: Erasure, dry_run: bool) -> Iterator[str]:
    yield from _removed(erasure, "would be removed" if dry_run else "removed")
    if dry_run:
        return
    yield f"looked for {erasure.texts} texts and ids in:"
    for place in erasure.searched:
        found = erasure.found.get(place)
        yield printable(f"  {place}: {f'{found} FOUND' if found else 'none'}")
    for column, count in erasure.held.items():
        yield printable(f"{count} of its texts are in other rows of {column} as well, and stay there")
    for note in erasure.notes:
        yield printable(f"note: {note}")


def _removed(erasure: Erasure, what: str) -> Iterator[str]:
    shown = ", ".join(erasure.traces[:_SHOWN]) + (", …" if len(erasure.traces) > _SHOWN else "")
    yield printable(f"{len(erasure.traces)} traces {what}{f': {shown}' if shown else ''}")
    rows = ", ".join(f"{count} {name}" for name, count in erasure.removed.items())
    yield f"rows {what}: {rows or 'none'}"
    if erasure.tasks:
        yield printable(f"these tasks quote it and stay: {', '.join(erasure.tasks)}")
