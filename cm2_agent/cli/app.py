"""The `cm2` application: its commands, one file each.

A command file has `register(app)`, which adds its commands. Heavy imports stay inside the commands' bodies, so that
`cm2 --help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from cm2_agent.cli.common import CommandGroup

COMMANDS = (
    "quickstart",
    "run",
    "import_",
    "export",
    "score",
    "train",
    "loop",
    "lint",
    "eval",
    "report",
    "certify",
    "recertify",
    "compare",
    "show",
    "doctor",
    "serve",
    "work",
    "model",
    "rows",
    "policy",
    "checklists",
    "tasks",
    "tools",
    "traces",
    "verdicts",
    "db",
    "spool",
    "token",
    "cookbook",
)
"""The command files, in the order of the help, which lists groups of commands last."""


def build(commands: Sequence[str] = COMMANDS) -> typer.Typer:
    """The application with these command files."""
    application = typer.Typer(
        cls=CommandGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @application.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None:
        """CM2: trace agents, score every trace by checklists into SQL, train on the stored traces with GRPO."""

    for name in commands:
        import_module(f"cm2_agent.cli.{name}").register(application)
    return application


def _print_version(wanted: bool) -> None:
    if wanted:
        from cm2_agent import __version__

        typer.echo(f"cm2 {__version__}")
        raise typer.Exit


app = build()
