"""`cm2 score`: score stored traces by a checklist, and compare a second opinion with the first."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.checklist_options import ChecklistArgument, ChecksOption
from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    console,
    echo_err,
    one_line,
    open_store,
    print_result,
    printable,
    progress,
)
from cm2_agent.cli.eval import reward_version
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
    usage_text,
)
from cm2_agent.cli.redaction import RedactOption, redactor_of
from cm2_agent.cli.trace_filters import FilterOptions, with_filters
from cm2_agent.cli.verdict_words import WORDS
from cm2_agent.errors import BudgetExhausted, ChecklistError, JudgeError, JudgeRefused, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cm2_agent.analysis.version_diff import Change
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer
    from cm2_agent.store import SQLStore
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.checklist_item import CheckFunction
    from cm2_agent.types.score import Score
    from cm2_agent.types.trace import Trace


def register(app: typer.Typer) -> None:
    short = "Score stored traces by a checklist."
    help = (
        "Score stored traces by a checklist, or each trace by its own task's. Traces with this reward version already"
        " are skipped, so the same command resumes where it stopped."
    )
    app.command("score", help=help, short_help=short)(score)


@with_filters
def score(
    checklist: ChecklistArgument = None,
    checks: ChecksOption = None,
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
        bool, typer.Option("--again", help="Score as a new reward version and list the verdicts that changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Forecast the judge's calls, tokens and dollars; ask and store nothing.")
    ] = False,
    redact: RedactOption = False,
    *,
    where: FilterOptions,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            metavar="VERSION",
            help="The reward version that --reward-below and --failed read (default: each trace's newest).",
        ),
    ] = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    import asyncio

    from cm2_agent.analysis.bootstrap import mean
    from cm2_agent.analysis.version_diff import compare
    from cm2_agent.rewards.judges.cache import NamespacedCache
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    functions, chosen = load_checklist_and_checks(checklist, checks)
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
    if dry_run and judge is None:
        raise JudgeError("--dry-run forecasts what a judge is asked; name one: --judge openai:gpt-5-mini")
    with open_store(store, project=project) as opened:
        judge_model = options.make(redactor_of(opened).redact if redact else None)
        scorer = ChecklistScorer(chosen, judge=judge_model, functions=functions)
        total = opened.count_traces()
        if not total:
            raise StoreError(
                f"{opened.url} holds no traces; import some first: cm2 import FORMAT FILE --store {opened.url}"
            )
        if chosen is None and not any(task.checklist is not None for task in opened.tasks()):
            raise ChecklistError(
                f"no checklist was named and no task in {opened.url} has one of its own; type: cm2 score"
                " CHECKLIST.yaml, or import with --checklists"
            )
        ids = _selected(opened, where, reward)
        total = total if ids is None else len(ids)
        old, salt = None, ""
        if again:
            scorer.version, old, salt = second_opinion(opened, scorer.version)
        if judge_model is not None:
            cache = opened.verdict_cache()
            judge_model.cache = NamespacedCache(cache, salt) if salt else cache
        missing = [
            one.trace_id
            for one in opened.scores(reward=scorer.version, ids=ids)
            if one.lower is None and (one.reward is None or judge_model is not None)
        ]  # a NULL may be a verdict now
        waiting = chain(opened.traces(unscored=True, reward=scorer.version, ids=ids), opened.traces(ids=missing))
        if dry_run and judge_model is not None:
            from cm2_agent.cli.score_forecast import forecast

            found = asyncio.run(forecast(opened, waiting, scorer, judge_model))
            if budget_usd is not None and found.total.usd is not None and found.total.usd > budget_usd:
                echo_err(f"the forecast passes the budget of {budget_usd:g} USD")
            if not as_json:
                found.print()
            print_result(found.to_json(), as_json=as_json, lines=found.lines())
            return
        work = asyncio.run(_score(opened, waiting, scorer, chosen))
        reasons, stopped = work.reasons, work.stopped
        stored = _Stored()
        scores = stored.counted(opened.scores(reward=scorer.version, ids=ids))
        before = () if old is None else opened.scores(reward=old, ids=ids)
        change = None if old is None else compare(before, scores, names=(old, scorer.version))
        for _ in scores:
            pass
    for reason, count in reasons.most_common():
        echo_err(printable(f"{count} without a reward: {reason}"))
    asks = chosen is not None and any(item.is_judged or item.when_question is not None for item in chosen)
    if reasons and judge_model is None and asks:
        echo_err("the checklist has questions, and nobody was there to answer them; give --judge MODEL")
    stored.echo_unknown_failures()
    if judge_model is not None:
        stored.echo_nulls()
    rewards = stored.rewards
    average = mean(rewards) if rewards else None
    result: dict[str, Any] = {"scored": len(rewards), "unscored": total - len(rewards), "mean_reward": average}
    if judge_model is not None:
        left = total - stored.scores
        echo_err(printable(f"judged by {judge_model.name}: {usage_text(judge_model.usage.to_json())}"))
        if stopped is not None:
            echo_err(printable(f"STOPPED, {left} traces left: {stopped}"))
        result["judge"] = {
            "model": judge_model.served or judge_model.name,
            **judge_model.usage.__dict__,
            "stopped": stopped is not None,
            "left": left,
        }
    if again:
        result["reward"] = scorer.version
        result["flips"] = None if change is None else change.to_json()
        if change is None:
            echo_err("no earlier scores by this checklist to compare with")
        else:
            print_flips(change)
    print_result(result, as_json=as_json, omit="flips")
    if work.owed and not work.judged:
        (why, _), *_ = work.owed.most_common(1)
        echo_err(printable(f"nothing could be judged: all {work.owed.total()} verdicts are pending. The judge: {why}"))
        raise typer.Exit(1)


def _selected(store: SQLStore, where: FilterOptions, reward: str | None) -> list[str] | None:
    """The ids of the traces that the options choose, before any new score changes that; None where none is given.
    Raises StoreError where they choose none."""
    if not where.given:
        if reward is not None:
            raise StoreError("--reward says which scores --reward-below and --failed read; give one of those too")
        return None
    version = None if reward is None else reward_version(store, reward)
    ids = store.selected(where.trace_filter(version))
    if not ids:
        raise StoreError(f"no trace in {store.url} meets the options; widen them")
    return ids


class _Stored:
    """What is said of the stored scores, counted as they go by: a store may hold more than fits into memory."""

    def __init__(self) -> None:
        self.scores = 0
        self.rewards = array("d")
        self._unknown = self._abstained = 0
        self._missing: Counter[str | None] = Counter()

    def counted(self, scores: Iterable[Score]) -> Iterator[Score]:
        """The same scores."""
        from cm2_agent.rewards.scoring.checks import UNKNOWN_FAILURE

        for score in scores:
            self.scores += 1
            if score.reward is not None:
                self.rewards.append(score.reward)
            for verdict in score.verdicts:
                self._unknown += verdict.reason == UNKNOWN_FAILURE
                self._abstained += verdict.reason == "abstained"
                if verdict.reason == "judge failed" and verdict.value is None:
                    self._missing[verdict.cause] += 1
            yield score

    def echo_unknown_failures(self) -> None:
        """Warn of verdicts that hang on what a recording does not tell."""
        if self._unknown:
            echo_err(
                f"warning: {self._unknown} verdicts are NULL, since the imported recordings do not tell whether calls"
                " failed; import them into a new store with --error-pattern"
            )

    def echo_nulls(self) -> None:
        """Say how many verdicts the judge still owes, and how many it cannot give for the trace's sake."""
        if owed := self._missing["infrastructure"]:
            echo_err(f"{owed} verdicts are pending, since the judge failed; the same command asks again")
        if own := self._missing["content"]:
            echo_err(f"{own} verdicts are NULL for the trace's sake; cm2 show TRACE says why")
        if self._abstained:
            echo_err(f"{self._abstained} verdicts are NULL, since the judge could not tell; cm2 show TRACE says which")


def load_checklist_and_checks(
    checklist: Path | None, checks: str | None
) -> tuple[dict[str, CheckFunction], Checklist | None]:
    """The check functions of `checks` and the checklist that may use them. Raises ChecklistError."""
    functions: dict[str, CheckFunction] = {}
    if checks is not None:
        from cm2_agent.rewards.scoring.checks import load_functions

        functions = load_functions(checks)
    if checklist is None:
        return functions, None
    from cm2_agent.types.checklist_yaml import load_checklist

    return functions, load_checklist(checklist, functions)


@dataclass(kw_only=True)
class _Work:
    """What scoring came to: why rewards are NULL, counted; the judge's verdicts (on `questions`, where the checklist is
    one), and the explanations of those that it still owes, counted; the budget that stopped it, if one did."""

    questions: frozenset[str] | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    owed: Counter[str] = field(default_factory=Counter)
    stopped: BudgetExhausted | None = None

    def add(self, score: Score) -> None:
        if score.reward is None:
            self.reasons[score.null_reason or "unknown"] += 1
        for verdict in score.verdicts:
            if verdict.reason == "judge failed" and verdict.cause == "infrastructure":
                self.owed[verdict.explanation or "it did not answer"] += 1
            elif self.questions is None or verdict.item in self.questions:
                self.judged += bool(verdict.explanation or verdict.evidence)


async def _score(
    store: SQLStore, traces: Iterable[Trace], scorer: ChecklistScorer, checklist: Checklist | None
) -> _Work:
    from cm2_agent.runner.rescore import score_traces

    questions = None if checklist is None else frozenset(item.id for item in checklist if item.is_judged)
    work = _Work(questions=questions)
    at_a_time = 1 if scorer.judge is None else 64
    with progress("scoring") as advance:
        try:
            async for _, found in score_traces(traces, checklist, store=store, scorer=scorer, concurrency=at_a_time):
                work.add(found)
                advance()
        except JudgeRefused:
            raise
        except BudgetExhausted as error:
            work.stopped = error
        finally:
            close: Any = getattr(scorer.judge, "aclose", None)
            if close is not None:
                await close()
    return work


def second_opinion(store: SQLStore, version: str) -> tuple[str, str | None, str]:
    """The reward version of a second opinion, the version to compare it with, and the namespace of its cache.

    A version that the store does not hold (another judge or checklist) is a second opinion as it is. Else a number
    makes it one, `…;again=1`; an interrupted opinion is resumed."""
    known = store.reward_versions()
    if version not in known:
        name = _checklist_name(version)
        return version, next((one for one in known if _checklist_name(one) == name), None), ""
    numbers = {
        int(found[1]): one for one in known if (found := re.fullmatch(re.escape(version) + r";again=(\d+)", one))
    }
    last = max(numbers, default=0)
    if last and next(store.traces(unscored=True, reward=numbers[last], limit=1), None) is not None:
        last -= 1
    earlier = numbers.get(last, version)
    return f"{version};again={last + 1}", earlier, f"again={last + 1}"


def _checklist_name(version: str) -> str:
    return re.split("[@:;]", version, maxsplit=1)[0]


def print_flips(change: Change) -> None:
    """Print how many verdicts of each item changed from what to what, with McNemar's p, and how the rewards changed."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=printable(f"{change.traces} traces: {change.old} → {change.new}"), title_justify="left")
    moves = [(old, new) for old in (True, False, None) for new in (True, False, None) if old is not new]
    for name in ("item", "n", "flips", "p"):
        table.add_column(name, justify="right" if name in {"n", "p"} else "left", overflow="fold")
    for flips in (*change.items, change.overall):
        name = "(all)" if flips.item is None else one_line(flips.item, 60)
        moved = [f"{count} {WORDS[old]}→{WORDS[new]}" for old, new in moves if (count := flips.counts.get((old, new)))]
        table.add_row(
            *(Text(cell) for cell in (name, str(flips.compared), ", ".join(moved) or "none", f"{flips.p:.3g}"))
        )
    out = console(err=True)
    out.print(table)
    out.print(f"of {change.both_true} verdicts passed in both, {change.same_step} from the same step")
    out.print(f"rewards: {change.up} higher, {change.down} lower, {change.same} the same")
    for (old, new), count in change.null.items():
        out.print(printable(f"{count} × {old or 'a reward'} → {new or 'a reward'}"), soft_wrap=True)
