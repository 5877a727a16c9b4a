"""The options of a training, for the commands that train."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

AlgorithmOption: TypeAlias = Annotated[
    str, typer.Option("--algorithm", metavar="NAME", help="grpo, sft, rft, dpo, or MODULE:TRAINER of your own.")
]
LoraOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--lora",
        metavar="r=16,alpha=32",
        help="Train a new LoRA adapter; also dropout=0.1, targets=NAME+NAME (default: all linear layers).",
    ),
]
AgentNameOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--agent-name", metavar="NAME", help="Only the steps of this agent, in a graph of several."),
]
CertificateOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--require-certificate", help="Refuse a reward version without a certificate that is enough (cm2 certify)."
    ),
]
AttackRateOption: TypeAlias = Annotated[
    float,
    typer.Option(
        "--max-attack-rate",
        min=0,
        max=1,
        help="With --require-certificate: the most that an attack may be paid.",
    ),
]
PassRateOption: TypeAlias = Annotated[
    float,
    typer.Option(
        "--min-pass-rate", min=0, max=1, help="With --require-certificate: the least share of right traces paid."
    ),
]
LevelOption: TypeAlias = Annotated[
    str, typer.Option("--level", help="trajectory, turn, step, return_to_go, evidence, lambda or auto.")
]
LambdaOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--lambda", min=0, max=1, help="λ of level lambda (default: that of the round before in --model, else 1)."
    ),
]
NormOption: TypeAlias = Annotated[
    str,
    typer.Option("--norm", help="none, or std: over the group's deviation; at lambda and auto others: the others'."),
]
StepsOption: TypeAlias = Annotated[
    int | None, typer.Option("--steps", min=1, help="Optimizer steps (default: one pass over the rollouts).")
]
LearningRateOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        help="Learning rate (default: grpo 3e-6, sft and rft 2e-5, dpo 1e-6; of an adapter ten times as much).",
    ),
]
RolloutsPerStepOption: TypeAlias = Annotated[
    int, typer.Option("--rollouts-per-step", min=1, help="Rollouts of one optimizer step.")
]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Another keyword of the algorithm, or a field of its TRL config; repeatable.",
    ),
]
