"""LoopSettings: the numbers of a loop."""

from __future__ import annotations

from dataclasses import dataclass

from cm2_agent.errors import TrainError
from cm2_agent.loop.promotion import ALPHA, PromotionRule

REWARD = "reward"
"""What counts, where it is no outcome."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The numbers of a loop.

    Args:
        rounds: how many, 1 or more.
        group: rollouts of a training task, 2 or more.
        tasks: training tasks a round; None: all of them.
        evaluations: dialogues with each policy on a task of the promotion and the test set.
        alpha: the chance to promote anything where nothing is better, at most.
        fresh: each round compares on tasks of its own, a part of the promotion set.
        by: what counts: "reward" (NULLs of the policy's making unpaid), or the name of an outcome.
        seed: of all dialogues and trainings.

    Raises:
        TrainError: a number that cannot be meant.
    """

    rounds: int = 4
    group: int = 8
    tasks: int | None = None
    evaluations: int = 4
    alpha: float = ALPHA
    fresh: bool = False
    by: str = REWARD
    seed: int = 0

    def __post_init__(self) -> None:
        if self.group < 2 or self.evaluations < 1 or (self.tasks is not None and self.tasks < 1):
            raise TrainError(
                f"group {self.group}, evaluations {self.evaluations}, tasks {self.tasks}; expected 2, 1 and 1 or more"
            )
        _ = self.rule

    @property
    def rule(self) -> PromotionRule:
        return PromotionRule(rounds=self.rounds, alpha=self.alpha, fresh=self.fresh)
