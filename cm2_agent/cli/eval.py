"""`cm2 eval`: how well stored rewards agree with a known outcome, or a judge with people's labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    echo_err,
    format_number,
    open_store,
    print_result,
    printable,
)
from cm2_agent.cli.human_labels import (
    HUMAN,
    agreement_report,
    compare_with_people,
    kappa_shortfall,
    report_lines,
)
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore
    from cm2_agent.types.trace import Trace


def register(app: typer.Typer) -> None:
    short = "Compare rewards with an outcome, or a judge with people."
    help = (
        "Compare rewards with an outcome (AUC over all pairs and within groups, rank correlation), or with --against"
        " human a judge with people's labels (agreement, Cohen's kappa, TPR, TNR, Krippendorff's alpha)."
    )
    app.command("eval", help=help, short_help=short)(evaluate)


def evaluate(
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="OUTCOME",
            help="An outcome's name, such as official_reward, or human for people's labels.",
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
        typer.Option(
            "--versus", metavar="VERSION", help="With human: also report the drift from this version or rater."
        ),
    ] = None,
    min_kappa: Annotated[
        float | None, typer.Option("--min-kappa", min=-1, max=1, help="With human: exit 1 where kappa is below this.")
    ] = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    if against == HUMAN:
        _evaluate_judge(store, project, reward, rater, versus, min_kappa, as_json=as_json)
        return
    if (rater, versus, min_kappa) != (None, None, None):
        raise StoreError(
            f"--rater, --versus and --min-kappa compare a judge with people; type: cm2 eval --against {HUMAN} …"
        )
    from cm2_agent.analysis.ranking import agreement
    from cm2_agent.types.group import group_key
    from cm2_agent.types.json_values import canonical_json

    with open_store(store, project=project) as opened:
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
    echo_err(printable(f"reward {version} against {against}; intervals: 95 %, clustered by task"))
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
        f"{name:<11} {format_number(getattr(found, name), found.ci[name])}"
        for name in ("auc", "auc_within", "spearman")
    ]
    print_result(
        result, as_json=as_json, lines=[*lines, f"pairs       {found.pairs}  (of one group, with different outcomes)"]
    )


def _evaluate_judge(
    url: str,
    project: str,
    reward: str | None,
    rater: str | None,
    versus: str | None,
    min_kappa: float | None,
    *,
    as_json: bool,
) -> None:
    if reward is not None and rater is not None:
        raise StoreError("--reward and --rater were both given; expected one of them, the judge to compare")
    with open_store(url, project=project) as opened:
        found = compare_with_people(opened, reward=reward, rater=rater)
        other = None
        if versus is not None:
            judge = {"reward": versus} if versus in opened.reward_versions() else {"rater": versus}
            other = compare_with_people(opened, **judge)
    echo_err(printable(f"{found.judge} against the consensus of people; intervals: 95 %, clustered by task"))
    result = agreement_report(found, other)
    print_result(result, as_json=as_json, lines=report_lines(result))
    reason = kappa_shortfall(result["kappa"], min_kappa)
    if reason is not None:
        echo_err(reason)
        raise typer.Exit(1)


def reward_version(store: SQLStore, version: str | None) -> str:
    """The named reward version, or the newest. Raises StoreError where the store does not hold it."""
    versions = list(store.reward_versions())
    if not versions:
        raise StoreError(f"{store.url} holds no scores; type first: cm2 score CHECKLIST.yaml --store {store.url}")
    if version is None:
        return versions[0]
    if version not in versions:
        raise StoreError(
            f"{store.url} holds no scores of reward version {version!r}; expected one of: {', '.join(versions)}"
        )
    return version


def _cluster(trace: Trace) -> str:
    return f"task {trace.task_id}" if trace.task_id is not None else f"trace {trace.id}"
