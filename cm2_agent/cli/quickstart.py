"""`cm2 quickstart`: the whole loop on the bundled sample agent, with progress and a table of results."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.errors import require_extra

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cm2_agent.quickstart.pipeline import Progress


def register(app: typer.Typer) -> None:
    short = "Train a small agent on its own scored traces, in minutes."
    help = (
        "Train a small agent on its own scored traces, in minutes, on this machine. Prints how many held-out tasks it"
        " solves before and after. An interrupted run resumes when the command is repeated."
    )
    app.command("quickstart", help=help, short_help=short)(quickstart)


def quickstart(
    seed: Annotated[
        int, typer.Option(help="Seed of policy, tasks and dialogues; the same seed gives the same numbers.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="The folder of the results (default: runs/quickstart-SEED).")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train each control for one pass over round 1's store.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    require_extra("train,plot", "Training and plotting", "torch", "transformers", "trl", "datasets", "matplotlib")
    folder = out or _unused_folder(Path("runs") / f"quickstart-{seed}")
    try:
        with _bars() as progress:
            from cm2_agent.quickstart.controls import run_controls
            from cm2_agent.quickstart.pipeline import Quickstart

            quickstart = Quickstart(seed, folder, progress=progress)
            result = quickstart.run()
            if controls:
                result["controls"] = run_controls(quickstart, result["before"])
                quickstart.save(result)
    except KeyboardInterrupt:
        typer.echo(
            f"\nInterrupted; the same command resumes. To look: cm2 show --store sqlite:///{folder / 'cm2.db'}",
            err=True,
        )
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print(result)


def _unused_folder(folder: Path) -> Path:
    """The folder, or the next `FOLDER-2`, … that holds no finished run."""
    number, free = 2, folder
    while (free / "result.json").exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free


@contextmanager
def _bars() -> Iterator[Progress]:
    """A progress bar for each stage on stderr; lines of text where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        finished: set[str] = set()

        def line(what: str, done: int, total: int) -> None:
            if done >= total and what not in finished:
                finished.add(what)
                print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

        yield line
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bars:
        shown: dict[str, Any] = {}

        def bar(what: str, done: int, total: int) -> None:
            if what not in shown:
                shown[what] = bars.add_task(what, total=total)
            bars.update(shown[what], completed=done, total=total)
            if done >= total:
                bars.stop_task(shown[what])

        yield bar


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{result['heldout']} held-out tasks, seed {result['seed']}", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    ends = (result["before"], result["after"])
    for label, key in (("success, temperature 1", "success"), ("success, greedy", "greedy")):
        table.add_row(label, *(f"{end[key]:.2f} ({end[f'{key}_ci'][0]:.2f}–{end[f'{key}_ci'][1]:.2f})" for end in ends))
    table.add_row("checklist reward", *("–" if end["reward"] is None else f"{end['reward']:.2f}" for end in ends))
    for kind in result["after"]["by_kind"]:
        table.add_row(f"  {kind.replace('_', ' ')}", *(f"{end['by_kind'].get(kind, 0):.2f}" for end in ends))
    console.print(table)
    if "controls" in result:
        passes = Table(title="one pass over round 1's store", title_justify="left")
        for column in ("", "success", "greedy", "reward", "gain"):
            passes.add_column(column, justify="left" if not column else "right")
        for name, row in result["controls"].items():
            reward = "–" if row["reward"] is None else f"{row['reward']:.2f}"
            passes.add_row(
                name.replace("_", " "), f"{row['success']:.2f}", f"{row['greedy']:.2f}", reward, f"{row['gain']:+.2f}"
            )
        console.print(passes)
    console.print(f"{result['traces']} traces in {result['store']}", soft_wrap=True, highlight=False)
    cost = f"{result['seconds']:.0f} s, {result['cpu_seconds']:.0f} CPU-s, {result['peak_rss_mb']} MB"
    console.print(f"{cost}; the curve: {result['picture']}", soft_wrap=True, highlight=False)
    console.print(f"Next: cm2 show --store {result['store']}", soft_wrap=True, highlight=False)
