"""`cm2 score`: a checklist's rewards for the stored traces."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, answer, open_store, plain, progress, tell
from cm2_agent.cli.judge_options import (
    BaseUrlOption,
    CallsOption,
    ConcurrencyOption,
    JudgeOption,
    JudgeOptions,
    PriceOption,
    ProtocolOption,
    RpmOption,
    TpmOption,
    UsdOption,
    VotesOption,
    print_flips,
    told,
)
from cm2_agent.cli.judge_options import again as second_opinion
from cm2_agent.errors import BudgetExhausted, ChecklistError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cm2_agent.rewards.scoring.scorer import ChecklistScorer
    from cm2_agent.store import SQLStore
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.checklist_item import CheckFunction
    from cm2_agent.types.trace import Trace


def register(app: typer.Typer) -> None:
    app.command(
        "score", help="Score stored traces by a checklist, or each by its own task's; goes on where it stopped."
    )(score)


def score(
    checklist: Annotated[
        Path | None, typer.Argument(metavar="CHECKLIST.yaml", help="Left out: each task's own checklist.")
    ] = None,
    checks: Annotated[
        str | None, typer.Option("--checks", metavar="MODULE", help="A module or .py file with check functions.")
    ] = None,
    judge: JudgeOption = None,
    judge_base_url: BaseUrlOption = None,
    votes: VotesOption = None,
    protocol: ProtocolOption = None,
    budget_usd: UsdOption = None,
    budget_calls: CallsOption = None,
    concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    price: PriceOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="A new reward version, and the verdicts that flipped since the old one.")
    ] = False,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.analysis.version_diff import compare
    from cm2_agent.rewards.judges.cache import Salted
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    functions, chosen = named(checklist, checks)
    options = JudgeOptions(
        model=judge,
        base_url=judge_base_url,
        votes=votes,
        protocol=protocol,
        budget_usd=budget_usd,
        budget_calls=budget_calls,
        concurrency=concurrency,
        rpm=rpm,
        tpm=tpm,
        price=price,
    )
    asked = options.make()
    scorer = ChecklistScorer(chosen, judge=asked, functions=functions)
    with open_store(store) as opened:
        total = int(opened.health()["traces"])
        if not total:
            raise StoreError(
                f"{opened.url} holds no traces; bring some in first: cm2 import FORMAT FILE --store {opened.url}"
            )
        if chosen is None and not any(task.checklist is not None for task in opened.tasks()):
            raise ChecklistError(
                f"no checklist was named and no task in {opened.url} has one of its own; type: cm2 score"
                " CHECKLIST.yaml, or import with --checklists"
            )
        old, salt = None, ""
        if again:
            scorer.version, old, salt = second_opinion(opened, scorer.version)
        if asked is not None:
            cache = opened.verdict_cache()
            asked.cache = Salted(cache, salt) if salt else cache
        missing = [
            one.trace_id for one in opened.scores(reward=scorer.version) if one.reward is None
        ]  # what was NULL may have changed
        waiting = chain(opened.traces(unscored=True, reward=scorer.version), opened.traces(ids=missing))
        reasons, stopped = asyncio.run(_score(opened, waiting, scorer, chosen))
        scores = list(opened.scores(reward=scorer.version))
        change = None if old is None else compare(opened.scores(reward=old), scores, names=(old, scorer.version))
    for reason, count in reasons.most_common():
        tell(plain(f"{count} without a reward: {reason}"))
    rewards = [one.reward for one in scores if one.reward is not None]
    mean = math.fsum(rewards) / len(rewards) if rewards else None
    result: dict[str, Any] = {"scored": len(rewards), "unscored": total - len(rewards), "mean_reward": mean}
    if asked is not None:
        left = total - len(scores)
        tell(plain(f"judged by {asked.name}: {told(asked.usage.to_json())}"))
        if stopped is not None:
            tell(plain(f"STOPPED, {left} traces left: {stopped}"))
        result["judge"] = {
            "model": asked.served or asked.name,
            **asked.usage.__dict__,
            "stopped": stopped is not None,
            "left": left,
        }
    if again:
        result["reward"] = scorer.version
        result["flips"] = None if change is None else change.to_json()
        if change is None:
            tell("no earlier scores by this checklist to compare with")
        else:
            print_flips(change)
    answer(result, as_json=as_json, but="flips")


def named(checklist: Path | None, checks: str | None) -> tuple[dict[str, CheckFunction], Checklist | None]:
    """The functions and the checklist that a command names. Raises ChecklistError."""
    functions: dict[str, CheckFunction] = {}
    if checks is not None:
        from cm2_agent.rewards.scoring.checks import load_functions

        functions = load_functions(checks)
    if checklist is None:
        return functions, None
    from cm2_agent.types.checklist_yaml import load_checklist

    return functions, load_checklist(checklist, functions)


async def _score(
    store: SQLStore, traces: Iterable[Trace], scorer: ChecklistScorer, checklist: Checklist | None
) -> tuple[Counter[str], BudgetExhausted | None]:
    """The reasons of rewards that are NULL, and what stopped the scoring before its end."""
    from cm2_agent.runner.run import score_traces

    reasons: Counter[str] = Counter()
    at_a_time = 1 if scorer.judge is None else 64
    with progress("scoring") as advance:
        try:
            async for _, found in score_traces(traces, checklist, store=store, scorer=scorer, concurrency=at_a_time):
                if found.reward is None:
                    reasons[found.null_reason or "unknown"] += 1
                advance()
        except BudgetExhausted as error:
            return reasons, error
        finally:
            close: Any = getattr(scorer.judge, "aclose", None)
            if close is not None:
                await close()
    return reasons, None
