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


def register(app: typer.Typer) -> None:
    short = "Compare rewards with an outcome, or a judge with people."
    help = (
        "Compare rewards with an outcome (AUC over all pairs and within groups, rank correlation, confusion and MCC of"
        " a whole reward and of the best threshold, beside baselines that read nothing), or with --against human a"
        " judge with people's labels (agreement, Cohen's kappa, TPR, TNR, Krippendorff's alpha)."
    )
    app.command("eval", help=help, short_help=short)(evaluate)


def evaluate(
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="OUTCOME",
            help="An outcome's name, such as official_reward; human for people's labels of items, human_outcome for"
            " those of whole dialogues.",
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
    success_at: Annotated[
        float, typer.Option("--success-at", metavar="N", help="With an outcome: from this value on it is a success.")
    ] = 1.0,
    reads: Annotated[
        list[str] | None,
        typer.Option("--reads", metavar="TOOL", help="With an outcome: a tool that changes nothing; may be repeated."),
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
    from cm2_agent.cli.outcomes import measured, outcome_lines, outcome_report

    with open_store(store, project=project) as opened:
        version = reward_version(opened, reward)
        found = measured(opened, version, against, reads or ())
    echo_err(printable(f"reward {version} against {against}; intervals: 95 %, clustered by task"))
    result = outcome_report(found, success_at)
    print_result(result, as_json=as_json, lines=outcome_lines(result))


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


def scored_version(store: SQLStore, version: str | None) -> str | None:
    """The named reward version, or the newest; None where none is named and the store holds no scores."""
    return reward_version(store, version) if version is not None or store.reward_versions() else None
