"""What every command shares: the store's option, one JSON object as the last line of stdout, words and progress on
stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer

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
JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on one line, and nothing else on stdout.")
]
STORE = "sqlite:///cm2.db"

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def plain(text: str) -> str:
    """Text from outside made safe for a terminal: control and direction characters (line breaks and tabs aside) are
    spelled out."""
    return _CONTROLS.sub(lambda match: match.group().encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str, width: int) -> str:
    """Safe text on one line, cut to a width."""
    joined = plain(" ".join(text.split()))
    return joined if len(joined) <= width else joined[: width - 1] + "…"


def tell(text: str) -> None:
    """A line to stderr."""
    typer.echo(text, err=True)


def answer(result: Mapping[str, Any], *, as_json: bool, lines: Iterable[str] = (), but: str | None = None) -> None:
    """The command's result: as one JSON object on one line, or as words (by default its keys and values, `but` for one
    told otherwise)."""
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=True, allow_nan=False))
        return
    for line in lines or (
        f"{name.replace('_', ' ')}: {_value(value)}" for name, value in result.items() if name != but
    ):
        typer.echo(line)


def figure(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A number with its interval, `none` where it is undetermined."""
    if value is None:
        return "none"
    return f"{value:.3f}" + ("" if interval is None else f"  [{interval[0]:.3f}, {interval[1]:.3f}]")


def open_store(url: str, *, create: bool = False) -> SQLStore:
    """The store behind a URL. Only a command that writes what happened makes a new one. Raises StoreError."""
    from cm2_agent.store import SQLStore

    return SQLStore(url, create=create)


def console(*, err: bool = False) -> Console:
    """A terminal for tables and dialogues: no markup, no emoji codes and no highlighting in what is printed."""
    from rich.console import Console

    return Console(stderr=err, markup=False, emoji=False, highlight=False, soft_wrap=False)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Any]:
    """A bar on stderr; the value is called once for each thing done. Where stderr is no terminal nothing is drawn."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def tracked(things: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The things, with a bar."""
    with progress(label, total) as advance:
        for thing in things:
            yield thing
            advance()


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(str(key))} {_value(item)}" for key, item in value.items()) or "nothing"
    return "none" if value is None else plain(str(value))
