"""`cm2 eval`: how well stored rewards agree with an outcome known from elsewhere, or a judge with people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli import human_labels as people
from cm2_agent.cli.common import STORE, JsonOption, StoreOption, answer, figure, open_store, plain, tell
from cm2_agent.cli.human_labels import HUMAN
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore
    from cm2_agent.types.trace import Trace


def register(app: typer.Typer) -> None:
    words = (
        "Compare rewards with an outcome (AUC, rank correlation), or a judge with people's labels (Cohen's kappa, TPR,"
        " TNR)."
    )
    app.command("eval", help=words)(evaluate)


def evaluate(
    against: Annotated[
        str,
        typer.Option(
            "--against", metavar="OUTCOME", help="The outcome's name, such as official_reward; human: people's labels."
        ),
    ],
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    rater: Annotated[
        str | None,
        typer.Option("--rater", metavar="NAME", help="With human: measure this rater, not a reward version."),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option("--versus", metavar="VERSION", help="With human: also the drift from this version or rater."),
    ] = None,
    min_kappa: Annotated[
        float | None, typer.Option("--min-kappa", min=-1, max=1, help="With human: exit 1 when kappa is below.")
    ] = None,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    if against == HUMAN:
        _people(store, reward, rater, versus, min_kappa, as_json=as_json)
        return
    if (rater, versus, min_kappa) != (None, None, None):
        raise StoreError(
            f"--rater, --versus and --min-kappa measure a judge by people; type: cm2 eval --against {HUMAN} …"
        )
    from cm2_agent.analysis.ranking import agreement
    from cm2_agent.types.group import group_key
    from cm2_agent.types.json_values import canonical_json

    with open_store(store) as opened:
        version = reward_version(opened, reward)
        rewards = {score.trace_id: score.reward for score in opened.scores(reward=version)}
        known: set[str] = set()
        rows: list[tuple[float, float, str | None, str]] = []
        for trace in opened.traces():
            known |= trace.outcomes.keys()
            worth, outcome = rewards.get(trace.id), trace.outcomes.get(against)
            if worth is None or outcome is None:
                continue
            key = group_key(trace, version)
            rows.append((worth, outcome, None if key is None else canonical_json(key), _cluster(trace)))
    if not rows:
        raise StoreError(
            f"no trace in {opened.url} has both a reward under {version} and the outcome {against!r}; outcomes there"
            f" are: {', '.join(sorted(known)) or 'none'}"
        )
    worths, outcomes, groups, clusters = zip(*rows, strict=True)
    found = agreement(worths, outcomes, groups, clusters)
    tell(plain(f"reward {version} against {against}; intervals: 95 %, clustered by task"))
    result = {
        "n": found.n,
        "auc": found.auc,
        "auc_within": found.auc_within,
        "pairs": found.pairs,
        "spearman": found.spearman,
        "ci": {name: None if interval is None else list(interval) for name, interval in found.ci.items()},
    }
    lines = [f"traces      {found.n}"]
    lines += [
        f"{name:<11} {figure(getattr(found, name), found.ci[name])}" for name in ("auc", "auc_within", "spearman")
    ]
    answer(
        result, as_json=as_json, lines=[*lines, f"pairs       {found.pairs}  (of one group, with different outcomes)"]
    )


def _people(
    url: str, reward: str | None, rater: str | None, versus: str | None, least: float | None, *, as_json: bool
) -> None:
    if reward is not None and rater is not None:
        raise StoreError("--reward and --rater were both given; expected the one judge that is to be measured")
    with open_store(url) as opened:
        found = people.measured(opened, reward=reward, rater=rater)
        other = None
        if versus is not None:
            named = {"reward": versus} if versus in opened.reward_versions() else {"rater": versus}
            other = people.measured(opened, **named)
    tell(plain(f"{found.judge} against the consensus of people; intervals: 95 %, clustered by task"))
    result = people.report(found, other)
    answer(result, as_json=as_json, lines=people.lines(result))
    reason = people.too_low(result["kappa"], least)
    if reason is not None:
        tell(reason)
        raise typer.Exit(1)


def reward_version(store: SQLStore, given: str | None) -> str:
    """The reward version that was named, or the newest. Raises StoreError where it is not there."""
    versions = list(store.reward_versions())
    if not versions:
        raise StoreError(f"{store.url} holds no scores; type first: cm2 score CHECKLIST.yaml --store {store.url}")
    if given is None:
        return versions[0]
    if given not in versions:
        raise StoreError(
            f"{store.url} holds no scores of reward version {given!r}; expected one of: {', '.join(versions)}"
        )
    return given


def _cluster(trace: Trace) -> str:
    return f"task {trace.task_id}" if trace.task_id is not None else f"trace {trace.id}"
