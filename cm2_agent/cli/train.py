"""`cm2 train`: a better policy from the stored groups, or the count of what it would be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

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
    progress,
)
from cm2_agent.cli.eval import reward_version
from cm2_agent.cli.human_labels import compare_with_people, kappa_shortfall
from cm2_agent.cli.null_checks import (
    MAX_NULL_RISE,
    check_null_items,
    check_null_rise,
    null_rates,
    report_groups,
)
from cm2_agent.cli.score import load_checklist_and_checks
from cm2_agent.cli.tokenizer import tokenizer_of
from cm2_agent.cli.training_options import (
    AgentNameOption,
    AlgorithmOption,
    AttackRateOption,
    CertificateOption,
    LambdaOption,
    LearningRateOption,
    LevelOption,
    LoraOption,
    NormOption,
    PassRateOption,
    RolloutsPerStepOption,
    SetOption,
    StepsOption,
)
from cm2_agent.errors import TrainError
from cm2_agent.types.certificate import MAX_ATTACK_RATE, MIN_PASS_RATE, policies_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set

    from cm2_agent.store import SQLStore
    from cm2_agent.types.group import Group
    from cm2_agent.types.json_values import JSON
    from cm2_agent.types.protocols import Trainer


def register(app: typer.Typer) -> None:
    short = "Train a policy on stored traces and their scores."
    help = (
        "Train a policy on what is stored: by GRPO on scored groups, by imitation of all traces (sft) or of the best"
        " rollouts (rft), by preferences (dpo), or by a trainer of your own. --rows-only counts"
        " the rows of GRPO and trains nothing."
    )
    app.command("train", help=help, short_help=short)(train)


TRAINER_OPTIONS = (
    *("model", "out", "overwrite", "agent", "level", "lam"),
    *("norm", "steps", "learning_rate", "rollouts_per_step", "seed"),
)
"""The options that a trainer gets as keyword arguments, where they were typed."""


def train(
    context: typer.Context,
    algorithm: AlgorithmOption = "grpo",
    model: Annotated[str | None, typer.Option("--model", help="The policy to train: a folder or hub name.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new folder for the trained policy.")] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace another run's policy, once this run has ended well."),
    ] = False,
    lora: LoraOption = None,
    rows_only: Annotated[
        bool, typer.Option("--rows-only", help="Make the token rows, count them, train nothing.")
    ] = False,
    allow_retokenised: Annotated[
        bool,
        typer.Option(
            "--allow-retokenised",
            help="With --rows-only: rows from words where there are no ids, by --model's tokenizer.",
        ),
    ] = False,
    checklist: Annotated[
        Path | None, typer.Option("--checklist", metavar="FILE", help="Train on this checklist's newest rewards.")
    ] = None,
    checks: Annotated[str | None, typer.Option("--checks", metavar="MODULE", help="The checklist's functions.")] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="VERSION", help="Only rollouts of this policy version.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="Only rollouts whose tools this backend answered: real, replay, …; repeatable.",
        ),
    ] = None,
    agent: AgentNameOption = None,
    min_kappa: Annotated[
        float | None,
        typer.Option(
            "--min-kappa", min=-1, max=1, help="Refuse unless the judge agrees this well with people's labels."
        ),
    ] = None,
    require_certificate: CertificateOption = False,
    max_attack_rate: AttackRateOption = MAX_ATTACK_RATE,
    min_pass_rate: PassRateOption = MIN_PASS_RATE,
    max_null_rise: Annotated[
        float,
        typer.Option(
            "--max-null-rise",
            min=0,
            max=1,
            help="Refuse where more of the reward is NULL by the policy's doing than by the first policy's (1: never).",
        ),
    ] = MAX_NULL_RISE,
    level: LevelOption = "trajectory",
    lam: LambdaOption = None,
    norm: NormOption = "none",
    steps: StepsOption = None,
    learning_rate: LearningRateOption = None,
    rollouts_per_step: RolloutsPerStepOption = 64,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the order of the rollouts.")] = 0,
    set_: SetOption = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.cli.algorithms import interrupted, load_algorithm, make_trainer, parse_settings, report_of, train_on
    from cm2_agent.cli.train_data import newest_version, scored_rollouts, stored_traces, versions_of

    if allow_retokenised and not rows_only:
        raise TrainError(
            "GRPO cannot train on retokenised rows: no sampler gave their logprobs; give --rows-only, or leave the"
            " flag out"
        )
    if rows_only and (set_ or lora or algorithm != "grpo"):
        raise TrainError(
            "--rows-only counts the rows of GRPO and trains nothing; leave --algorithm, --lora and --set out"
        )
    trainer: Trainer | None = None
    if not rows_only:
        typed = {
            name: value
            for name, value in context.params.items()
            if name in TRAINER_OPTIONS and (source := context.get_parameter_source(name)) and source.name != "DEFAULT"
        }
        made = load_algorithm(algorithm)
        if lora is not None:
            from cm2_agent.trainers.lora import parse_lora

            typed["peft_config"] = parse_lora(lora)
        trainer = make_trainer(algorithm, made, typed, parse_settings(set_ or ()))
    if checklist is not None and reward is not None:
        raise TrainError(
            "--checklist and --reward were both given; a reward version names its checklist already: give one of them"
        )
    _, chosen = load_checklist_and_checks(checklist, checks)
    needs = "groups" if trainer is None else str(getattr(trainer, "needs", "groups"))
    if needs == "traces" and (chosen is not None or reward is not None):
        if getattr(trainer, "pairs", None) == "guard":
            raise TrainError(
                "--set pairs=guard takes the attempts that a guard rejected, of all traces, whatever their scores;"
                " leave --checklist and --reward out, or leave pairs=guard out: pairs are then those of scored groups"
            )
        needs = "groups"
    with open_store(store, project=project) as opened:
        given: Iterable[Any]
        if needs == "traces":
            if min_kappa is not None or require_certificate:
                raise TrainError(
                    f"--algorithm {algorithm} takes all traces, whatever their scores, so that no judge matters; leave"
                    " --min-kappa and --require-certificate out, or choose by scores: --set select=best"
                )
            given = stored_traces(opened, policy, backend or ())
        elif needs == "scored":
            versions = [newest_version(opened, chosen) if chosen is not None else reward_version(opened, reward)]
            given = scored_rollouts(opened, versions[0], policy, backend or ())
        else:
            version = None if chosen is not None else reward_version(opened, reward)
            groups = opened.stream_groups(checklist=chosen, reward=version, policy=policy, backends=backend or None)
            if not groups and (policy or backend):
                raise_no_match(opened.stream_groups(checklist=chosen, reward=version).keys, policy, backend or ())
            versions = versions_of(groups.keys)
            nulls = report_groups(groups)
            if policy is not None:  # beside the first policy's
                nulls = null_rates(opened.stream_groups(checklist=chosen, reward=version))
            check_null_rise(nulls, max_null_rise, policy)
            given = groups
        if needs != "traces":
            if min_kappa is not None:
                _check_judge(opened, versions, min_kappa)
            if require_certificate:
                keys = groups.keys if needs == "groups" else ()
                policies: set[str | None] = {key["policy"] for key in keys}
                if needs == "scored":
                    rollouts = scored_rollouts(opened, versions[0], policy, backend or ())
                    policies = policies_of(rollout.trace for rollout in rollouts)
                check_certificate(opened, versions, policies, max_attack_rate, min_pass_rate)
            for scored_by in versions:
                check_null_items(opened, scored_by)
        if trainer is None:
            _count(groups, model, allow_retokenised, level=level, norm=norm, lam=lam, agent=agent, as_json=as_json)
            return
        try:
            with progress("training", steps) as advance:
                path = train_on(trainer, given, advance)
        except KeyboardInterrupt:
            echo_err(interrupted(getattr(trainer, "out", None)))
            raise typer.Exit(130) from None
    from cm2_agent.trainers.launch import rank

    if rank() == 0:  # a launcher starts this command once a process
        print_result({"out": str(path)} | report_of(trainer) | {"out": str(path)}, as_json=as_json)


def raise_no_match(keys: Iterable[Mapping[str, JSON]], policy: str | None, backends: Sequence[str]) -> NoReturn:
    """Raises TrainError saying which policies and backends there are in place of those that were asked for."""
    from cm2_agent.types.group import backends_of

    given = ([f"--policy {policy}"] if policy else []) + [f"--backend {name}" for name in backends]
    policies: set[JSON] = set()
    answered: set[str] = set()
    for key in keys:
        policies.add(key["policy"])
        answered.update(backends_of(key) or ())
    raise TrainError(
        f"no group of scored rollouts is of {' '.join(given)}; there are the policies"
        f" {', '.join(sorted(map(str, policies - {None}))) or 'none'} and the backends"
        f" {', '.join(sorted(answered)) or 'none'}"
    )


def _check_judge(store: SQLStore, versions: Iterable[str], least: float) -> None:
    """Raises TrainError where a reward version's verdicts agree with people's labels less than they must."""
    for version in versions:
        found = compare_with_people(store, reward=version)
        reason = kappa_shortfall(found.reliability(draws=0).kappa, least)
        if reason is not None:
            raise TrainError(
                f"reward version {version}: {reason}; nothing was trained. Type: cm2 eval --against human --reward"
                f" {version} to see on which items it differs, then mend them and score again"
            )


def check_certificate(
    store: SQLStore,
    versions: Iterable[str],
    policies: Set[str | None],
    max_attack_rate: float,
    min_pass_rate: float,
) -> None:
    """Raises TrainError where a reward version has no certificate, one that is not enough, or one that does not hold
    for these policies."""
    from cm2_agent.rewards.certificate.families import shipped_families

    families = {one.name for one in shipped_families()}
    for version in versions:
        found = store.certificate(version)
        if found is None:
            reason = "it has no certificate"
        else:
            short = found.shortfall(max_attack_rate, min_pass_rate, families=families)
            expired = found.expired(policies)
            if short is None and expired is not None:
                raise TrainError(
                    f"reward version {version}: its certificate has expired: {expired}; nothing was trained. Type: cm2"
                    f" recertify CHECKLIST.yaml --store {store.url}, or leave --require-certificate out"
                )
            if short is None:
                continue
            reason = f"its certificate is not enough: {short}"
        raise TrainError(
            f"reward version {version}: {reason}; nothing was trained. Type: cm2 certify CHECKLIST.yaml --store"
            f" {store.url} with the judge and the checks of that version, or leave --require-certificate out"
        )


def _count(
    groups: Iterable[Group],
    model: str | None,
    retokenise: bool,
    *,
    level: str,
    norm: str,
    lam: float | None,
    agent: str | None,
    as_json: bool,
) -> None:
    from cm2_agent.trainers.dataset import WHOLE_ROUND, count_rows
    from cm2_agent.trainers.previous_round import round_before
    from cm2_agent.trainers.retokenize import rows_from_text

    before = round_before(None, model) if level in WHOLE_ROUND else None
    from_text = rows_from_text(tokenizer_of(model), agent=agent) if retokenise else None
    report, longest = count_rows(
        groups, level=level, norm=norm, lam=lam, before=before, from_text=from_text, agent=agent
    )
    if report.retokenised_rows:
        echo_err(
            f"{report.retokenised_rows} of {report.rows} rows were made from words: not trainable by GRPO, for"
            " imitation alone"
        )
    for reason, count in sorted(report.left_out.items()):
        echo_err(printable(f"{count} rollouts left out: {reason}"))
    print_result({**report.to_json(), "longest_row": longest}, as_json=as_json)
