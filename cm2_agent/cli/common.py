"""What the commands share: errors without tracebacks, the store's option, JSON on stdout, messages and progress on
stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer
from typer.core import TyperGroup

from cm2_agent.errors import CM2Error, JudgeRefused
from cm2_agent.types.text import shorten

if TYPE_CHECKING:
    from rich.console import Console

    from cm2_agent.store import SQLStore

T = TypeVar("T")

StoreOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--store", envvar="CM2_STORE", help="The store: sqlite:///FILE.db or postgresql+psycopg://USER@HOST/DATABASE."
    ),
]
ProjectOption: TypeAlias = Annotated[
    str, typer.Option("--project", envvar="CM2_PROJECT", help="The project whose traces are meant.")
]
JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on one line, and nothing else on stdout.")
]
STORE = "sqlite:///cm2.db"
PROJECT = "default"

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class CommandGroup(TyperGroup):
    """Commands that report an error without a traceback: exit 2 for what cannot be done, 1 where a model's
    provider refuses it (key, name, credit), 130 for an interruption."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] if args else ""
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = ", ".join(name for name in self.list_commands(ctx) if not self.commands[name].hidden)
            echo_err(
                f"{ctx.command_path} has no command {name!r}. Expected one of: {known}. Type: {ctx.command_path} --help"
            )
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CM2Error as error:
            echo_err(printable(str(error)))
            raise typer.Exit(1 if isinstance(error, JudgeRefused) else 2) from None
        except KeyboardInterrupt:
            echo_err("interrupted; finished work is stored, and the same command resumes there")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of the output has left, as in `cm2 show | head`
            sys.stderr.close()
            raise typer.Exit(0) from None


def command_group(help: str) -> typer.Typer:
    """A group of sub-commands, such as `cm2 db`."""
    return typer.Typer(cls=CommandGroup, no_args_is_help=True, help=help, rich_markup_mode=None)


def printable(text: str) -> str:
    """Text from outside, safe for a terminal: control and direction characters are escaped, but for line breaks and
    tabs."""
    return _CONTROLS.sub(lambda match: match.group().encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str, width: int) -> str:
    """Printable text on one line, cut to a width."""
    return shorten(printable(" ".join(text.split())), width)


def echo_err(text: str) -> None:
    """Print a line to stderr."""
    typer.echo(text, err=True)


def print_result(
    result: Mapping[str, Any], *, as_json: bool, lines: Iterable[str] = (), omit: str | None = None
) -> None:
    """Print a command's result: one JSON object on one line, or `lines`, by default `key: value` for all keys but
    `omit`."""
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=True, allow_nan=False))
        return
    for line in lines or (
        f"{name.replace('_', ' ')}: {_value(value)}" for name, value in result.items() if name != omit
    ):
        typer.echo(line)


def format_number(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A number with its interval, or `none`."""
    if value is None:
        return "none"
    return f"{value:.3f}" + ("" if interval is None else f"  [{interval[0]:.3f}, {interval[1]:.3f}]")


def open_store(url: str, *, project: str = PROJECT, create: bool = False) -> SQLStore:
    """A project's store behind a URL; only commands that write traces `create` a new one. Raises StoreError."""
    from cm2_agent.store import SQLStore

    return SQLStore(url, project=project, create=create)


def console(*, err: bool = False) -> Console:
    """A terminal for tables and dialogues, which reads no markup or emoji codes in what it prints."""
    from rich.console import Console

    return Console(stderr=err, markup=False, emoji=False, highlight=False, soft_wrap=False)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on stderr, where that is a terminal; call the value once for each thing done."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def tracked(things: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The same things, with a progress bar."""
    with progress(label, total) as advance:
        for thing in things:
            yield thing
            advance()


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(key))} {_value(item)}" for key, item in value.items()) or "nothing"
    return "none" if value is None else printable(str(value))
