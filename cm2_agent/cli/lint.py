"""`cm2 lint`: what a checklist pays for silence, refusals, failed calls and empty phrases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.checklist_options import ChecksOption
from cm2_agent.cli.common import PROJECT, JsonOption, ProjectOption, open_store, print_result, printable, tracked
from cm2_agent.errors import ChecklistError

if TYPE_CHECKING:
    from cm2_agent.rewards.linting.lint import LintReport
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.checklist_item import CheckFunction
    from cm2_agent.types.score import Score
    from cm2_agent.types.task import Task
    from cm2_agent.types.trace import Trace


def register(app: typer.Typer) -> None:
    short = "Check what a checklist pays for nothing."
    help = (
        "Check a checklist on counterfeit dialogues: silence, refusals, calls that fail, calling everything once, text"
        " that anyone can say; and on a store: items that are dead, saturated or at odds, and real dialogues without"
        " what their agent did. Exits with 1 where one of them is paid. Nobody is asked and nothing is stored."
    )
    app.command("lint", help=help, short_help=short)(lint)


def lint(
    checklist: Annotated[
        str, typer.Argument(metavar="CHECKLIST", help="A checklist's YAML file, or a library such as cm2:grounding.")
    ],
    checks: ChecksOption = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", metavar="NAME=VALUE", help="A parameter of a library; repeatable."),
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", metavar="TASKS.jsonl", help="Tasks whose user messages the counterfeits answer."),
    ] = None,
    max_reward: Annotated[
        float, typer.Option("--max-reward", min=0, max=1, help="What a counterfeit may earn; more is an error.")
    ] = 0.1,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URL", help="Also try it on the traces stored there.")
    ] = None,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    import asyncio

    from cm2_agent.rewards.linting.lint import lint as tried

    made, functions = _checklist(checklist, checks, parameters or [])
    listed = _tasks(tasks)
    tools = sorted({tool.name for task in listed for tool in task.tools or ()}) or None
    if store is None:
        report = asyncio.run(tried(made, functions=functions, tasks=listed, tools=tools, max_reward=max_reward))
    else:
        with open_store(store, project=project) as opened:
            versions = opened.reward_versions(made.hash)
            pairs = (
                tracked(opened.scored_traces(reward=versions[0]), "reading")
                if versions
                else _scored(made, functions, tracked(opened.traces(), "reading"))
            )
            report = asyncio.run(
                tried(made, functions=functions, tasks=listed, tools=tools, traces=pairs, max_reward=max_reward)
            )
    print_result(report.to_json(), as_json=as_json, lines=_lines(made, report))
    if not report.passed:
        raise typer.Exit(1)


def _scored(
    checklist: Checklist, functions: dict[str, CheckFunction], traces: Iterable[Trace]
) -> Iterator[tuple[Trace, Score | None]]:
    """Where no score by the checklist is stored, its checks are asked here; its questions stay unanswered."""
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    scorer = ChecklistScorer(checklist, functions=functions)
    for trace in traces:
        yield trace, scorer.score_sync(trace)


def _checklist(name: str, checks: str | None, parameters: list[str]) -> tuple[Checklist, dict[str, CheckFunction]]:
    from cm2_agent.cli.score import load_checklist_and_checks
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.checklist_library import SHIPPED

    if not name.startswith(SHIPPED):
        if parameters:
            raise ChecklistError("--parameter was given with a file; parameters belong to a library: cm2:NAME")
        functions, loaded = load_checklist_and_checks(Path(name), checks)
        assert loaded is not None, "a path was given"
        return loaded, functions
    functions, _ = load_checklist_and_checks(None, checks)
    given = dict(map(_parameter, parameters))
    entry: Any = {name: given} if given else name
    return Checklist.from_json({"name": name.removeprefix(SHIPPED), "include": [entry]}), functions


def _parameter(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ChecklistError(f"--parameter {text!r}; expected NAME=VALUE, such as tool=cancel_order or writes=[cancel]")
    try:
        return name, json.loads(value)
    except ValueError:
        listed = value.removeprefix("[").removesuffix("]")
        return name, value if listed == value else [one.strip() for one in listed.split(",")]


def _tasks(path: Path | None) -> list[Task]:
    if path is None:
        return []
    from cm2_agent.types.task import load_tasks

    return [task for task in load_tasks(path) if task.turns]


def _lines(checklist: Checklist, report: LintReport) -> Iterator[str]:
    yield printable(f"{checklist.name}: {len(checklist.items)} items")
    width = max((len(one.kind) for one in report.paid), default=0)
    for one in report.paid:
        most = "" if one.at_most == one.reward else f" (at most {one.at_most:.2f}, depending on the judge)"
        yield printable(f"  {one.kind:<{width}}  {one.reward:.2f}{most}")
    for finding in report.findings:
        item = "" if finding.item is None else f"{finding.item}: "
        yield printable(f"{finding.severity}: {item}{finding.message}")
    yield "passed" if report.passed else "failed"
