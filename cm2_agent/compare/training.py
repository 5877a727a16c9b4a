"""One round's training of an arm, with as many optimizer steps and as many tokens forward and backward as any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cm2_agent.datasets.control_rewards import outcome_alone
from cm2_agent.errors import TrainingDiverged
from cm2_agent.trainers.dataset import Credits, by_level
from cm2_agent.trainers.preference_pairs import group_preferences
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.trace import Trace

from .arms import Arm
from .credits import positive, shuffled

PAIRS_PER_GROUP = 12


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a round's training may take: optimizer `steps`, and `tokens` that go forward and backward in all of them."""

    steps: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a round's training took. `tokens` went forward and backward, padding and DPO's reference not counted;
    `skipped` says why the policy stayed as it was: there was nothing to train on, or training diverged."""

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    skipped: str | None = None


def train(
    arm: Arm,
    policy: Path,
    out: Path,
    groups: Sequence[Group],
    *,
    learning_rate: float,
    budget: Budget,
    seed: int,
) -> Trained:
    """Train a policy on groups as the arm does and write the new one to `out`; nothing is written where there is
    nothing to train on, and where training diverges.

    Args:
        arm: how.
        policy: the folder of the policy.
        out: the folder of the new one.
        groups: scored rollouts.
        learning_rate: constant after two steps of warm-up.
        budget: steps and tokens.
        seed: of the order of rows, and of the shuffled arm.
    """
    given = outcome_alone(groups) if arm.reward == "outcome" else list(groups)
    credits = _credits(arm, seed)
    used = used_rollouts(arm, given, credits)
    if not used:
        return Trained(skipped="nothing to train on: no group differs, or none earned anything")
    mean = sum(length_of(rollout.trace) for rollout in used) / len(used)
    rows = max(1, round(budget.tokens / (budget.steps * mean)))
    if arm.method == "dpo":  # a pair has two
        rows = 2 * max(1, rows // 2)
    found = Trained(steps=budget.steps, rows=budget.steps * rows, tokens=round(budget.steps * rows * mean))
    try:
        _fit(arm, policy, out, given, credits, rows=rows, steps=budget.steps, learning_rate=learning_rate, seed=seed)
    except TrainingDiverged as error:  # an outcome of the arm at this learning rate
        return replace(found, skipped=f"diverged: {error}")
    return found


def _fit(
    arm: Arm,
    policy: Path,
    out: Path,
    groups: Sequence[Group],
    credits: Credits | None,
    *,
    rows: int,
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train with the arm's algorithm, on `rows` rows a step."""
    shared: dict[str, Any] = {
        "steps": steps,
        "learning_rate": learning_rate,
        "warmup_steps": min(2, steps - 1),
        "seed": seed,
    }
    if arm.method == "grpo":
        from cm2_agent.trainers.grpo import GRPO

        how: dict[str, Any] = {"level": arm.level, "lam": arm.lam} if credits is None else {"credits": credits}
        args = {"epsilon": 0.2, "epsilon_high": 0.28}
        GRPO(policy, out, rollouts_per_step=rows, args=args, **how, **shared).train(groups)
    elif arm.method == "sft":
        from cm2_agent.trainers.sft import SFT

        SFT(policy, out, select=arm.select, rows_per_step=rows, **shared).train(groups)  # type: ignore[arg-type]  # a name
    else:
        from cm2_agent.trainers.dpo import DPO

        DPO(policy, out, margin=arm.margin, pairs_per_group=PAIRS_PER_GROUP, pairs_per_step=rows // 2, **shared).train(
            groups
        )


def used_rollouts(arm: Arm, groups: Sequence[Group], credits: Credits | None = None) -> list[Rollout]:
    """The rollouts whose rows an arm trains on, each as often as it stands in a pass."""
    if arm.method == "dpo":
        pairs = [pair for group in groups for pair in group_preferences(group, margin=arm.margin, most=PAIRS_PER_GROUP)]
        return [rollout for pair in pairs for rollout in pair.rollouts or ()]
    if arm.method == "sft":
        return [rollout for group in groups for rollout in _imitated(arm, group)]
    # at level lambda a group is informative where the unbiased level says so
    given = credits or by_level("return_to_go" if arm.level == "lambda" else arm.level, "none")
    found: list[Rollout] = []
    for group in groups:
        of_group = given(group)
        if any(
            credit(step.turn, step.index) != 0
            for rollout, credit in zip(group.rollouts, of_group, strict=True)
            if not isinstance(credit, str)
            for step in rollout.trace.steps
        ):
            found += group.rollouts
    return found


def length_of(trace: Trace) -> int:
    """The tokens of a dialogue's row: what its last call read and wrote."""
    last = trace.calls[-1] if trace.calls else None
    return 0 if last is None else len(last.prompt_ids or ()) + len(last.completion_ids or ())


def sampled_tokens(group: Group) -> int:
    """The tokens that the policy drew in a group."""
    return sum(len(call.completion_ids or ()) for rollout in group.rollouts for call in rollout.trace.calls)


def _credits(arm: Arm, seed: int) -> Credits | None:
    if arm.reward == "shuffled":
        return shuffled(arm.level, seed)
    return positive(arm.level) if arm.positive else None


def _imitated(arm: Arm, group: Group) -> list[Rollout]:
    if arm.select == "best-turn":
        from cm2_agent.trainers.best_turns import best_turns

        return [one for one, turns in zip(group.rollouts, best_turns(group.rollouts), strict=True) if turns]
    rewards = [rollout.score.lower or 0.0 for rollout in group.rollouts]
    return [one for one, reward in zip(group.rollouts, rewards, strict=True) if reward == max(rewards) > 0]
