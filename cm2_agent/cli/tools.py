"""`cm2 tools`: how well a simulator matches the recorded answers of tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import (
    JsonOption,
    command_group,
    console,
    echo_err,
    format_number,
    print_result,
    printable,
    progress,
)
from cm2_agent.cli.simulator_options import BaseUrlOption, BudgetOption, PriceOption, SimulatorModels

if TYPE_CHECKING:
    from cm2_agent.graphs.backends.simulator_eval import Fidelity, Held
    from cm2_agent.types.protocols import ToolBackend
    from cm2_agent.types.task import Task


def register(app: typer.Typer) -> None:
    group = command_group("Test how well a simulator matches recorded tools.")
    help = (
        "Ask a simulator for recorded answers that it was not shown, and list the tools that it gets wrong. Exits 1"
        " where there are any."
    )
    group.command("check", help=help, short_help="Ask a simulator for recorded answers that it was not shown.")(check)
    app.add_typer(group, name="tools")


def check(
    tasks: Annotated[
        Path, typer.Argument(metavar="TASKS.jsonl", help="Tasks with recorded calls (cm2 tasks from-traces).")
    ],
    simulator: Annotated[
        str,
        typer.Option("--simulator", metavar="MODEL", help="The model to test: openai-chat:gpt-5-mini, local:FOLDER."),
    ],
    base_url: BaseUrlOption = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="List tools whose field match is below this.")
    ] = 0.7,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="OUT.jsonl", help="Write the tasks with few-shots re-selected from the misses."
        ),
    ] = None,
    most: Annotated[int | None, typer.Option("--most", min=1, help="At most this many calls per tool.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Ask once per call, without measuring consistency.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Concurrent calls.")] = 16,
    budget_usd: BudgetOption = None,
    price: PriceOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the simulator and the few-shots.")] = 0,
    as_json: JsonOption = False,
) -> None:
    import asyncio

    from cm2_agent.graphs.backends.simulator_eval import fidelity, reselected
    from cm2_agent.types.task import load_tasks, save_tasks

    task_list = load_tasks(tasks)
    models = SimulatorModels(simulator=simulator, base_url=base_url, budget_usd=budget_usd, price=price)
    limits = models.limits()
    simulate, _ = models.make(None, seed=seed, limits=limits, cached=False)
    assert simulate is not None
    found = asyncio.run(_ask(task_list, simulate, most, concurrency, twice=not once))
    measured = fidelity(found)
    below = frozenset(one.tool for one in measured if one.fields[0] < threshold)
    result: dict[str, Any] = {
        "calls": len(found),
        "failed": sum(held.failed is not None for held in found),
        "threshold": threshold,
        "below": sorted(below),
        "tools": {one.tool: _shares(one) for one in measured},
    }
    if below:
        again = [reselected(task, found, below) for task in task_list]
        second = fidelity(asyncio.run(_ask(again, simulate, most, concurrency, twice=False, tools=below)))
        result["reselected"] = {one.tool: {"fields": one.fields[0], "interval": list(one.fields[1])} for one in second}
        if write is not None:
            save_tasks(again, write)
    elif write is not None:
        save_tasks(task_list, write)
    usage = limits.usage
    result["usage"] = {
        "calls": usage.calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": usage.usd,
    }
    _table(measured, threshold)
    for reason in sorted({held.failed for held in found if held.failed is not None})[:5]:
        echo_err(printable(f"no answer: {reason}"))
    print_result(result, as_json=as_json, lines=_lines(result))
    if below:
        raise typer.Exit(1)


async def _ask(
    tasks: Sequence[Task], simulate: Callable[[Task], ToolBackend], most: int | None, concurrency: int, **options: Any
) -> list[Held]:
    from cm2_agent.graphs.backends.simulator_eval import held_out

    found = []
    with progress("asking", None) as advance:
        async for held in held_out(tasks, simulate, most=most, concurrency=concurrency, **options):
            found.append(held)
            advance()
    return sorted(found, key=lambda held: (held.task, held.position))


def _shares(one: Fidelity) -> dict[str, Any]:
    names = ("valid", "exact", "fields", "error_form", "consistent")
    shares = {name: getattr(one, name) for name in names}
    as_json = {
        name: None if share is None else {"mean": share[0], "interval": list(share[1])}
        for name, share in shares.items()
    }
    return {"calls": one.calls, "failed": one.failed, **as_json}


def _table(measured: Sequence[Fidelity], threshold: float) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"tools below a field match of {threshold:g} fail", title_justify="left")
    for name in ("tool", "calls", "valid", "exact", "fields", "error form", "consistent"):
        table.add_column(name, overflow="fold", justify="left" if name == "tool" else "right")
    for one in measured:
        shares = (one.valid, one.exact, one.fields, one.error_form, one.consistent)
        cells = [format_number(None) if share is None else format_number(*share) for share in shares]
        table.add_row(*map(Text, (printable(one.tool), str(one.calls), *cells)))
    console(err=True).print(table)


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['calls']} recorded calls asked again, {result['failed']} without a usable answer"]
    for tool in result["below"]:
        before, after = result["tools"][tool]["fields"]["mean"], result["reselected"][tool]["fields"]
        lines.append(
            printable(
                f"UNDER {result['threshold']:g}: {tool}: fields {before:.3f}; with its misses as few-shots {after:.3f}"
            )
        )
    return lines
