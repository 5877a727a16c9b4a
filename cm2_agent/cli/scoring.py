"""`cm2 score`: a checklist's rewards for the stored traces."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, answer, open_store, plain, progress, tell
from cm2_agent.errors import ChecklistError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cm2_agent.checklist import CheckFunction, Checklist
    from cm2_agent.rewards.scorer import ChecklistScorer
    from cm2_agent.store import SQLStore
    from cm2_agent.trace import Trace


def register(app: typer.Typer) -> None:
    app.command("score", help="Score stored traces by a checklist, or each by its own task's; goes on where it stopped.")(score)


def score(
    checklist: Annotated[Path | None, typer.Argument(metavar="CHECKLIST.yaml", help="Left out: each task's own checklist.")] = None,
    checks: Annotated[str | None, typer.Option("--checks", metavar="MODULE", help="A module or .py file with check functions.")] = None,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.rewards.scorer import ChecklistScorer

    functions, chosen = named(checklist, checks)
    scorer = ChecklistScorer(chosen, functions=functions)
    with open_store(store) as opened:
        total = int(opened.health()["traces"])
        if not total:
            raise StoreError(f"{opened.url} holds no traces; bring some in first: cm2 import FORMAT FILE --store {opened.url}")
        if chosen is None and not any(task.checklist is not None for task in opened.tasks()):
            raise ChecklistError(
                f"no checklist was named and no task in {opened.url} has one of its own; type: cm2 score CHECKLIST.yaml, or "
                "import with --checklists"
            )
        missing = [one.trace_id for one in opened.scores(reward=scorer.version) if one.reward is None]  # what was NULL may have changed
        waiting = chain(opened.traces(unscored=True, reward=scorer.version), opened.traces(ids=missing))
        reasons = asyncio.run(_score(opened, waiting, scorer, chosen))
        rewards = [one.reward for one in opened.scores(reward=scorer.version) if one.reward is not None]
    for reason, count in reasons.most_common():
        tell(plain(f"{count} without a reward: {reason}"))
    mean = math.fsum(rewards) / len(rewards) if rewards else None  # whatever the order in which they came
    answer({"scored": len(rewards), "unscored": total - len(rewards), "mean_reward": mean}, as_json=as_json)


def named(checklist: Path | None, checks: str | None) -> tuple[dict[str, CheckFunction], Checklist | None]:
    """The functions and the checklist that a command names. Raises ChecklistError."""
    functions: dict[str, CheckFunction] = {}
    if checks is not None:
        from cm2_agent.rewards.checks import load_functions

        functions = load_functions(checks)
    if checklist is None:
        return functions, None
    from cm2_agent.checklist_file import load_checklist

    return functions, load_checklist(checklist, functions)


async def _score(store: SQLStore, traces: Iterable[Trace], scorer: ChecklistScorer, checklist: Checklist | None) -> Counter[str]:
    from cm2_agent.runner import score_traces

    reasons: Counter[str] = Counter()
    with progress("scoring") as advance:
        async for _, found in score_traces(traces, checklist, store=store, scorer=scorer):
            if found.reward is None:
                reasons[found.null_reason or "unknown"] += 1
            advance()
    return reasons
