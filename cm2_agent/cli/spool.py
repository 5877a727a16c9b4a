"""`cm2 spool`: show or save the runs that ended processes left in a store's spool."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, command_group, print_result

SpoolOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--spool", metavar="FOLDER", help="The folder given to watch(spool=); by default the store's own (CM2_SPOOL)."
    ),
]


def register(app: typer.Typer) -> None:
    group = command_group("Show or save runs that ended processes left in a spool.")
    group.command("show", help="Count the runs that wait in the spool; nothing is changed.")(show)
    help = "Save the runs that ended processes left; they get their scores by cm2 score."
    group.command("replay", help=help, short_help="Save the runs that ended processes left.")(replay)
    app.add_typer(group, name="spool")


def show(store: StoreOption = STORE, spool: SpoolOption = None, as_json: JsonOption = False) -> None:
    from cm2_agent.spool.status import read_status

    status = read_status(store, spool)
    print_result(
        {
            "folder": status.folder,
            "runs": sum(status.runs.values()),
            "projects": {project: runs for project, runs in status.runs.items() if runs},
            "files_of_living_processes": status.living,
            "refused_runs": status.refused,
            "unreadable_files": status.unreadable,
        },
        as_json=as_json,
    )


def replay(store: StoreOption = STORE, spool: SpoolOption = None, as_json: JsonOption = False) -> None:
    from cm2_agent.online.leftovers import save_leftovers

    found = save_leftovers(store, spool)
    print_result(
        {"saved": found.runs, "unreadable": found.unreadable, "torn_files": found.torn, "missing": found.missing},
        as_json=as_json,
    )
