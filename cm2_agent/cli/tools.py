"""`cm2 tools`: whether a simulator may stand for the tools of these tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import JsonOption, answer, console, figure, plain, progress, tell
from cm2_agent.cli.simulator_options import BaseUrlOption, BudgetOption, Models, PriceOption

if TYPE_CHECKING:
    from cm2_agent.graphs.backends.backends import Answering
    from cm2_agent.graphs.backends.simulator_eval import Fidelity, Held
    from cm2_agent.types.task import Task


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True, help="Tools behind a switch: whether a simulator is true to what was recorded."
    )
    words = "Ask a simulator for recorded answers that it was not shown; name the tools it gets wrong; exits 1 on any."
    group.command("check", help=words)(check)
    app.add_typer(group, name="tools")


def check(
    tasks: Annotated[
        Path, typer.Argument(metavar="TASKS.jsonl", help="Tasks with recorded calls (cm2 tasks from-traces).")
    ],
    simulator: Annotated[
        str, typer.Option("--simulator", metavar="MODEL", help="Who answers: openai-chat:gpt-5-mini, local:FOLDER, …")
    ],
    base_url: BaseUrlOption = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Field match below which a tool is named.")
    ] = 0.7,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="OUT.jsonl", help="Write the tasks with few-shots re-selected by what was missed."
        ),
    ] = None,
    most: Annotated[int | None, typer.Option("--most", min=1, help="Recorded calls of a tool at most.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Ask once a call; consistency is then not measured.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Calls at a time.")] = 16,
    budget_usd: BudgetOption = None,
    price: PriceOption = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.graphs.backends.simulator_eval import fidelity, reselected
    from cm2_agent.types.task import load_tasks, save_tasks

    listed = load_tasks(tasks)
    models = Models(simulator=simulator, base_url=base_url, budget_usd=budget_usd, price=price)
    limits = models.limits()
    simulate, _ = models.make(None, seed=seed, limits=limits, remembers=False)
    assert simulate is not None
    found = asyncio.run(_asked(listed, simulate, most, concurrency, twice=not once))
    measured = fidelity(found)
    below = frozenset(one.tool for one in measured if one.fields[0] < threshold)
    result: dict[str, Any] = {
        "calls": len(found),
        "failed": sum(held.failed is not None for held in found),
        "threshold": threshold,
        "below": sorted(below),
        "tools": {one.tool: _told(one) for one in measured},
    }
    if below:
        again = [reselected(task, found, below) for task in listed]
        second = fidelity(asyncio.run(_asked(again, simulate, most, concurrency, twice=False, tools=below)))
        result["reselected"] = {one.tool: {"fields": one.fields[0], "interval": list(one.fields[1])} for one in second}
        if write is not None:
            save_tasks(again, write)
    elif write is not None:
        save_tasks(listed, write)
    usage = limits.usage
    result["usage"] = {
        "calls": usage.calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": usage.usd,
    }
    _table(measured, threshold)
    for reason in sorted({held.failed for held in found if held.failed is not None})[:5]:
        tell(plain(f"no answer: {reason}"))
    answer(result, as_json=as_json, lines=_lines(result))
    if below:
        raise typer.Exit(1)


async def _asked(
    tasks: Sequence[Task], simulate: Callable[[Task], Answering], most: int | None, concurrency: int, **options: Any
) -> list[Held]:
    from cm2_agent.graphs.backends.simulator_eval import held_out

    found = []
    with progress("asking", None) as advance:
        async for held in held_out(tasks, simulate, most=most, concurrency=concurrency, **options):
            found.append(held)
            advance()
    return sorted(found, key=lambda held: (held.task, held.position))


def _told(one: Fidelity) -> dict[str, Any]:
    names = ("valid", "exact", "fields", "error_form", "consistent")
    shares = {name: getattr(one, name) for name in names}
    told = {
        name: None if share is None else {"mean": share[0], "interval": list(share[1])}
        for name, share in shares.items()
    }
    return {"calls": one.calls, "failed": one.failed, **told}


def _table(measured: Sequence[Fidelity], threshold: float) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"field match under {threshold:g} is too little", title_justify="left")
    for name in ("tool", "calls", "valid", "exact", "fields", "error form", "consistent"):
        table.add_column(name, overflow="fold", justify="left" if name == "tool" else "right")
    for one in measured:
        shares = (one.valid, one.exact, one.fields, one.error_form, one.consistent)
        cells = [figure(None) if share is None else figure(*share) for share in shares]
        table.add_row(*map(Text, (plain(one.tool), str(one.calls), *cells)))
    console(err=True).print(table)


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['calls']} recorded calls asked again, {result['failed']} without a usable answer"]
    for tool in result["below"]:
        before, after = result["tools"][tool]["fields"]["mean"], result["reselected"][tool]["fields"]
        lines.append(
            plain(
                f"UNDER {result['threshold']:g}: {tool}: fields {before:.3f}; with its misses as few-shots {after:.3f}"
            )
        )
    return lines
