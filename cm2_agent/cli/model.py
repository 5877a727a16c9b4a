"""`cm2 model`: what a model's folder can do, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli.common import JsonOption, command_group, print_result, printable

if TYPE_CHECKING:
    from cm2_agent.models.check import ModelCheck


def register(app: typer.Typer) -> None:
    group = command_group("Check a model's folder.")
    short = "Check weights, stops, tools, thinking and formats; exit 1 where something would be lost."
    help = (
        "Check the folder of a model or an adapter: whether the weights are whole and fit the configuration, the base"
        " and the tokenizer, stop tokens, whether tools are shown, thinking, the format of tool calls, control words,"
        " and a dialogue of five messages there and back, token by token. Reads no weights (their names and sizes"
        " alone) and runs no code of the folder. Exits 1 where it cannot be trained or something would be lost."
    )
    group.command("check", help=help, short_help=short)(check)
    app.add_typer(group, name="model")


def check(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder of a model, an adapter, or a tokenizer.")
    ],
    no_tools: Annotated[bool, typer.Option("--no-tools", help="The model is to call no tools.")] = False,
    no_tokens: Annotated[bool, typer.Option("--no-tokens", help="Leave out the dialogue's tokens.")] = False,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.models.check import check_model

    found = check_model(folder, tools=not no_tools)
    result = {"ok": found.ok, **asdict(found)}
    if no_tokens:
        del result["tokens"]
    print_result(result, as_json=as_json, lines=_lines(found, tokens=not no_tokens))
    if not found.ok:
        raise typer.Exit(1)


def _lines(found: ModelCheck, *, tokens: bool) -> Iterator[str]:
    yield printable(f"model          {found.name}")
    yield printable(f"weights        {found.weights}")
    stops = ", ".join(f"{text} ({id_})" for id_, text in found.stops.items()) or "none"
    yield printable(f"stops          {stops}; the template ends a message with {found.ending[:60]!r}")
    yield printable(f"tools          {found.tools}")
    yield printable(f"calls          {found.calls}")
    yield printable(f"thinking       {found.thinking}")
    yield printable(f"control words  {found.control_words}, text where data holds them")
    if tokens:
        yield "dialogue"
        for token in found.tokens:
            yield printable(f"  {token.source:<8}{token.id:>8}  {token.text!r}")
    for note in found.notes:
        yield printable(f"note: {note}")
    for problem in found.problems:
        yield printable(f"problem: {problem}")
    count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
    yield "nothing would be lost" if found.ok else count
