"""Credits that need a whole round: the advantages of level `lambda`, whose baseline is fitted on the other groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON

from .advantage import GroupAdvantages, RolloutAdvantage, advantages, zeroed
from .episodes import Episode, Floats, generalized_advantages
from .rows import Credit
from .values import cross_fitted_values

EPSILON = 1e-6
"""Added to the standard deviation that norm `others` divides by."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What is kept of a group until the round is whole: its episodes, or why it is left out (then there are none)."""

    left_out: tuple[RolloutAdvantage, ...]
    episodes: tuple[Episode, ...]


class RoundCredits:
    """Takes a round's groups one after the other, and gives all of them their advantages once it has them.

    Args:
        lam: λ of GAE(λ), in [0, 1].
        norm: `none`, or `others`: divided by the standard deviation of the *other* groups' advantages + 1e-6. No action
            of a group moves its own divisor, so that the expected update keeps its direction.

    Raises:
        TrainError: another norm or λ.
    """

    def __init__(self, *, lam: float = 1.0, norm: str = "none") -> None:
        if norm not in ("none", "others"):
            raise TrainError(
                f"norm {norm!r} at level lambda; expected none, or others (the standard deviation of the other groups'"
                " advantages): a divisor from the group itself would bias it"
            )
        if not 0 <= lam <= 1:
            raise TrainError(f"lam {lam}; expected a number in [0, 1]: 1 is unbiased")
        self.lam, self.norm = float(lam), norm
        self._groups: list[Collected] = []

    def __call__(self, group: Group) -> list[Credit | str]:
        """Of each rollout the reason why it is left out, else what stands for its advantages until they are known."""
        scores = [rollout.score for rollout in group.rollouts]
        if not scores:
            self._groups.append(Collected(left_out=(), episodes=()))
            return []
        happened = [[len(turn.steps) for turn in rollout.trace.turns] for rollout in group.rollouts]
        checked = advantages(scores, level="lambda", happened=happened).rollouts
        if any(one.left_out for one in checked):
            self._groups.append(Collected(left_out=checked, episodes=()))
            return [one.brief or one for one in checked]
        episodes = tuple(Episode.of(rollout.score, rollout.trace) for rollout in group.rollouts)
        self._groups.append(Collected(left_out=(), episodes=episodes))
        return [RolloutAdvantage(trace_id=one.trace_id, scalar=0.0) for one in episodes]

    def advantages(self) -> list[GroupAdvantages]:
        """Those of each group, in the order in which they were given."""
        values = cross_fitted_values([group.episodes for group in self._groups])
        found = [
            [
                generalized_advantages(episode.rewards_T, value, self.lam)
                for episode, value in zip(group.episodes, own, strict=True)
            ]
            for group, own in zip(self._groups, values, strict=True)
        ]
        divisors = _others_deviation(found) if self.norm == "others" else [1.0] * len(found)
        return [
            GroupAdvantages(
                level="lambda",
                norm="none",
                rollouts=group.left_out
                or tuple(
                    _rollout(episode, values_T / divisor) for episode, values_T in zip(group.episodes, own, strict=True)
                ),
            )
            for group, own, divisor in zip(self._groups, found, divisors, strict=True)
        ]

    @property
    def report(self) -> Mapping[str, JSON]:
        """What stands of it in report.json under `credit`."""
        return {"level": "lambda", "lambda": self.lam}


def _rollout(episode: Episode, values_T: Floats) -> RolloutAdvantage:
    steps = {
        turn: (zeroed(value),) * size
        for turn, size, value in zip(episode.turns, episode.steps, values_T.tolist(), strict=True)
    }
    return RolloutAdvantage(trace_id=episode.trace_id, steps=steps)


def _others_deviation(groups: list[list[Floats]]) -> list[float]:
    """For each group the standard deviation of the others' advantages + EPSILON; 1 where no other has any."""
    sums = np.array([[sum(map(len, own)), *(sum(float((v**p).sum()) for v in own) for p in (1, 2))] for own in groups])
    found = []
    for at in range(len(groups)):
        count, total, squares = np.delete(sums, at, axis=0).sum(axis=0)
        deviation = np.sqrt(max(0.0, squares / count - (total / count) ** 2)) if count else 0.0
        found.append(float(deviation) + EPSILON if count and deviation > 0 else 1.0)
    return found


__all__ = ["RoundCredits"]
