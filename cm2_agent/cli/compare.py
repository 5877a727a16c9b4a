"""`cm2 compare` and `cm2 repro`: arms of training compared on a bundled desk, and one of the numbers made again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.errors import TrainError, require_extra

if TYPE_CHECKING:
    from cm2_agent.compare.comparison import Comparison


def register(app: typer.Typer) -> None:
    app.command(
        "compare",
        short_help="Compare ways of training on a bundled desk, at equal cost.",
        help=(
            "Compare ways of training on a bundled desk: learning rates are tuned on seeds of their own, then every arm"
            " starts from the same policies, draws as many tokens and trains on as many. Each cell is a file of --out:"
            " the same command goes on where it was stopped, and several processes may share one folder. Hours of CPU"
            " time: --cells bounds a sitting."
        ),
    )(compare)
    app.command(
        "repro",
        short_help="Run one cell of a comparison's manifest again.",
        help=(
            "Carry out cells of a manifest again and compare the numbers; exits with 1 where one differs. The same code"
            " on the same machine gives the same numbers."
        ),
    )(repro)


def compare(
    out: Annotated[Path, typer.Option(help="The folder of the comparison.")],
    turns: Annotated[int, typer.Option(help="User messages a task; it chooses the default arms: 3, 6 or 10.")] = 3,
    start: Annotated[str, typer.Option(help='What policies can do at first: "full", "none", "partial".')] = "partial",
    arms: Annotated[str | None, typer.Option(help="Names of arms, with commas (default: those of --turns).")] = None,
    cold_starts: Annotated[int, typer.Option(help="Policies to begin with.")] = 5,
    samplings: Annotated[int, typer.Option(help="Collections from each of them.")] = 2,
    learning_rates: Annotated[int, typer.Option(help="Learning rates tried for each arm.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds of collecting and training.")] = 5,
    tasks: Annotated[int, typer.Option(help="Tasks a round.")] = 16,
    group: Annotated[int, typer.Option(help="Rollouts of a task.")] = 12,
    steps: Annotated[int, typer.Option(help="Optimizer steps a round.")] = 12,
    evaluated: Annotated[int, typer.Option(help="Held-out tasks.")] = 96,
    cold_start_steps: Annotated[int | None, typer.Option(help="Steps of imitation in a cold start.")] = None,
    cells: Annotated[int | None, typer.Option(help="Carry out at most so many cells now.")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            help="The folder of a finished comparison of another number of turns; may be repeated. How the margin of"
            " GRPO over SFT grows with the turns is shown."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    require_extra("train,plot", "Comparing", "torch", "transformers", "trl", "datasets", "matplotlib")
    from transformers.utils import logging

    from cm2_agent.benchmarks.lending_desk.desk import lending_desk
    from cm2_agent.compare.comparison import Comparison
    from cm2_agent.compare.experiment import Experiment
    from cm2_agent.compare.picture import draw
    from cm2_agent.compare.slope import margin_slope, read_summary

    others = [read_summary(folder) for folder in beside or ()]
    desk = lending_desk()
    if start not in desk.starts:
        raise TrainError(f"start {start!r}; expected one of {', '.join(desk.starts)}")
    settings: dict[str, Any] = {
        "start": start,
        "cold_starts": tuple(range(cold_starts)),
        "samplings": tuple(range(samplings)),
        "learning_rates": learning_rates,
        "rounds": rounds,
        "tasks": tasks,
        "group": group,
        "steps": steps,
        "evaluated": evaluated,
        "cold_start_steps": cold_start_steps,
    }
    if arms is not None:
        settings["arms"] = tuple(name.strip() for name in arms.split(","))
    logging.disable_progress_bar()
    comparison: Comparison = Comparison(desk, Experiment.of_turns(turns, **settings), out, _line)
    found = comparison.run(cells)
    picture = draw(found, out / "comparison.svg")
    if others and not found["left"]:
        found["margin_slope"] = margin_slope([found, *others])
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(found, out, picture)


def repro(
    manifest: Annotated[Path, typer.Argument(help="The manifest.json of a comparison.")],
    out: Annotated[Path, typer.Option(help="A folder for what is made again.")],
    cell: Annotated[list[str] | None, typer.Option(help="The key of a cell; may be repeated (default: all).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    require_extra("train", "Training", "torch", "transformers", "trl", "datasets")
    from transformers.utils import logging

    from cm2_agent.benchmarks.lending_desk.desk import lending_desk
    from cm2_agent.compare.comparison import repeat
    from cm2_agent.compare.experiment import Cell, Experiment

    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
        experiment = Experiment.from_json(data["experiment"])
        rows = {Cell(**row["cell"]).key: row for row in data["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{manifest}: not a manifest of cm2 compare: {error!r}") from error
    if out.resolve() == manifest.resolve().parent:
        raise TrainError(
            f"--out {out} is the folder of the comparison itself, whose numbers would be replaced; name another"
        )
    wanted = cell or list(rows)
    if unknown := [key for key in wanted if key not in rows]:
        raise TrainError(f"{manifest} has no cell {unknown[0]!r}; it has {', '.join(list(rows)[:6])}, …")
    logging.disable_progress_bar()
    differences = {key: repeat(lending_desk(), rows[key], experiment, out) for key in wanted}
    differing = [key for key, found in differences.items() if set(found) - {"commit", "code", "hardware"}]
    if as_json:
        typer.echo(json.dumps({"cells": wanted, "differing": differing, "differences": differences}))
    else:
        for key in wanted:
            named = ", ".join(differences[key])
            typer.echo(f"{key}: {'the same numbers' if key not in differing else 'differs'}{named and f' ({named})'}")
    if differing:
        raise typer.Exit(1)


def _line(what: str, done: int, total: int) -> None:
    if done in (0, total) or what == "cells":
        print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)


def _print(found: dict[str, Any], out: Path, picture: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from cm2_agent.compare.results import table

    titles, *rows = table(found)
    console = Console()
    shown = Table(title=f"{found['experiment']['turns']} turns, start {found['experiment']['start']}")
    for number, title in enumerate(titles):
        shown.add_column(title, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    over = found["grpo_over_sft"]
    if over is not None:
        bounds = "" if over["interval"] is None else f" ({over['interval'][0]:+.2f} to {over['interval'][1]:+.2f})"
        console.print(
            f"{found['best']['grpo']} against {over['against']}, both chosen on the tuning seeds: success"
            f" {over['success']:+.2f}{bounds}, {over['pairs']} pairs"
        )
    if (grown := found.get("margin_slope")) is not None:
        bounds = "" if grown["interval"] is None else f" ({grown['interval'][0]:+.2f} to {grown['interval'][1]:+.2f})"
        margins = ", ".join(f"{one['success']:+.2f} at {one['turns']} turns" for one in grown["margins"])
        console.print(f"GRPO over SFT: {margins}; slope on log(turns) {grown['slope']:+.2f}{bounds}")
    console.print(f"{found['left']} cells are left; the numbers: {out / 'comparison.json'}", soft_wrap=True)
    if picture is not None:
        console.print(f"The picture: {picture}", soft_wrap=True)
