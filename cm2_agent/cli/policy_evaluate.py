"""`cm2 policy evaluate`: what a new policy would earn, from what is stored of an old one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
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
    progress,
)
from cm2_agent.cli.eval import reward_version
from cm2_agent.cli.policies import is_gone
from cm2_agent.cli.score import load_checklist_and_checks
from cm2_agent.errors import TrainError

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore
    from cm2_agent.trainers import PolicyEvaluation, ValueEstimate

SHORT = "Estimate a new policy's reward from an old one's rollouts."
HELP = (
    "Estimate what a new policy would earn, from the stored and scored rollouts of an old one and before anybody is"
    " served by it: by importance weights, self-normalised and doubly robust, with intervals over tasks and the"
    " difference to the old policy on the same tasks. Exits 1 without an estimate where the two are too far from each"
    " other (an effective sample size of less than 10 % of the rollouts) or fewer than 30 tasks are covered."
)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="NEW", help="The new policy: a folder, a version, or a hub name.")],
    checklist: Annotated[
        Path | None, typer.Option("--checklist", metavar="FILE", help="By this checklist's newest rewards.")
    ] = None,
    checks: Annotated[str | None, typer.Option("--checks", metavar="MODULE", help="The checklist's functions.")] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="VERSION", help="The old policy (default: the one that wrote the rollouts)."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="Only rollouts whose tools this backend answered: real, replay, …; repeatable.",
        ),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option("--agent-name", metavar="NAME", help="NEW takes this agent's place alone, in a graph of several."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Only rollouts sampled at this temperature.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.cli.algorithms import StepsDone
    from cm2_agent.trainers import evaluate_policy
    from cm2_agent.trainers.launch import rank

    if checklist is not None and reward is not None:
        raise TrainError(
            "--checklist and --reward were both given; a reward version names its checklist already: give one of them"
        )
    _, chosen = load_checklist_and_checks(checklist, checks)
    with open_store(store, project=project) as opened:
        version = None if chosen is not None else reward_version(opened, reward)
        groups = opened.stream_groups(
            checklist=chosen, reward=version, policy=policy, backends=backend or None, min_size=1
        )
        if not groups and (policy or backend):
            from cm2_agent.cli.train import raise_no_match

            raise_no_match(opened.stream_groups(checklist=chosen, reward=version).keys, policy, backend or ())
        try:
            with progress("evaluating") as advance:
                found = evaluate_policy(
                    _weights(opened, model),
                    groups,
                    agent=agent,
                    temperature=temperature,
                    seed=seed,
                    progress=StepsDone(advance),
                )
        except KeyboardInterrupt:
            echo_err("interrupted; nothing was changed, and the same command begins anew")
            raise typer.Exit(130) from None
    if rank() == 0:  # a launcher starts this command once a process
        print_result(found.to_json(), as_json=as_json, lines=_lines(found))
        if found.refused is not None:
            echo_err(printable(f"no estimate of the new policy: {found.refused}"))
    if found.refused is not None:
        raise typer.Exit(1)


def _weights(store: SQLStore, model: str) -> str:
    """Where the weights are of what was typed: a folder, a registered version or its beginning, or a hub name. Raises
    TrainError. A version names weights, so that it does not matter which agent's it is."""
    if Path(model).exists():
        return model
    begun = [one for one in store.policies() if one.version.startswith(model)]
    rows = [one for one in begun if one.version == model] or begun
    versions = sorted({one.version for one in rows})
    if not versions:
        return model
    if len(versions) > 1:
        raise TrainError(
            f"{model!r} begins the versions of {len(versions)} policies: {', '.join(versions[:4])}; type more of it"
        )
    folders = [one.folder for one in rows if one.folder is not None]
    if not folders:
        raise TrainError(
            f"nobody knows where the weights of policy {versions[0]} are: it was registered without a folder; type"
            " the folder in place of the version"
        )
    there = [folder for folder in folders if not is_gone(folder)]
    if not there:
        raise TrainError(
            f"the weights of policy {versions[0]} are gone: they were in {folders[0]}. Bring them back, or type the"
            " folder where they are in place of the version"
        )
    return there[0]


def _lines(found: PolicyEvaluation) -> Iterator[str]:
    values = found.values
    yield printable(
        f"{values.rollouts} rollouts of {values.tasks} tasks by policy {found.behaviour}, at temperature"
        f" {found.temperature:g}, reward {found.reward}"
    )
    for reason, count in sorted(found.left_out.items()):
        yield printable(f"left out: {count} × {reason}")
    if found.left_out_mean is not None:
        yield f"mean reward of those left out: {format_number(found.left_out_mean)}"
    yield f"old policy: {_number(values.old)}"
    yield printable(
        f"new policy {found.policy}: effective sample size {values.effective:.1f} ({values.share:.1%} of the rollouts),"
        f" mean weight {_number(values.weight)}, expected 1"
    )
    if found.same:
        yield "it is the policy that wrote the rollouts: every weight is 1"
    if found.refused is None:
        for name, one, gain in (
            ("self-normalised", values.self_normalised, values.gain_self_normalised),
            ("doubly robust", values.doubly_robust, values.gain_doubly_robust),
        ):
            yield f"new policy, {name}: {_number(one)}; less the old: {_number(gain)}"


def _number(one: ValueEstimate) -> str:
    return format_number(one.value, None if one.low is None or one.high is None else (one.low, one.high))
