"""The `cm2` application: which command groups there are, and how a failure is told; apart so that a command's file
holds its command alone.

A command file has `register(app)`, which adds its commands; heavy imports stay inside the commands' bodies, so that
`cm2 --help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from cm2_agent.cli.common import plain, tell
from cm2_agent.errors import CM2Error

COMMANDS = (
    "quickstart",
    "run",
    "import_",
    "export",
    "score",
    "label",
    "train",
    "eval",
    "report",
    "show",
    "doctor",
    "tasks",
    "tools",
    "db",
)
"""The command files, in the order in which the help lists what they add."""


class Group(TyperGroup):
    """Tells errors without a traceback: what cannot be done exits 2, an interruption 130."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] if args else ""
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = ", ".join(self.list_commands(ctx))
            tell(
                f"{ctx.command_path} has no command {name!r}. Expected one of: {known}. Type: {ctx.command_path} --help"
            )
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CM2Error as error:
            tell(plain(str(error)))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            tell("interrupted; what was finished is stored, and the same command goes on from there")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of the output has left, as in `cm2 show | head`
            sys.stderr.close()
            raise typer.Exit(0) from None


def build(commands: Sequence[str] = COMMANDS) -> typer.Typer:
    """The application with these command files."""
    application = typer.Typer(
        cls=Group,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="CM2: trace agents, score every trace by checklists into SQL, train on the stored traces with GRPO.",
    )

    @application.callback()
    def root() -> None:
        """CM2: trace agents, score every trace by checklists into SQL, train on the stored traces with GRPO."""

    for name in commands:
        import_module(f"cm2_agent.cli.{name}").register(application)
    return application


app = build()
