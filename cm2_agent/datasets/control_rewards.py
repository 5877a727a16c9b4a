"""Rewards for controls: each group's scores permuted, or the app's own success in place of the checklist's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.score import Score

OUTCOME_VERSION = "outcome:1"


def shuffled_scores(groups: Sequence[Group], seed: int) -> list[Group]:
    """Each group's scores permuted among its rollouts."""
    rng = random.Random(f"shuffled:{seed}")
    mixed = []
    for group in groups:
        scores = [rollout.score for rollout in group.rollouts]
        rng.shuffle(scores)
        mixed.append(_scored(group, scores))
    return mixed


def outcome_alone(groups: Sequence[Group]) -> list[Group]:
    """Each rollout's reward is the app's own success, NULL where it has none."""
    return [
        _scored(
            replace(group, key={**group.key, "reward": OUTCOME_VERSION}),
            [
                Score(
                    trace_id=rollout.trace.id,
                    reward_version=OUTCOME_VERSION,
                    reward=value,
                    components={"success": value},
                )
                for rollout in group.rollouts
                for value in [rollout.trace.outcomes.get("success")]
            ],
        )
        for group in groups
    ]


def _scored(group: Group, scores: Sequence[Score]) -> Group:
    return replace(
        group,
        rollouts=tuple(
            Rollout(trace=rollout.trace, score=replace(score, trace_id=rollout.trace.id))
            for rollout, score in zip(group.rollouts, scores, strict=True)
        ),
    )
