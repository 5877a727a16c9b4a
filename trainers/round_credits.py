"""Credits that need a whole round: the advantages of level `lambda`, whose baseline is fitted on the other groups, and
of `auto`, which looks at all groups before it chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score

from .advantage import GroupAdvantages, RolloutAdvantage, advantages, require_lambda, zeroed
from .episodes import Episode, Floats, generalized_advantages
from .lambda_estimate import LambdaEstimate, estimate_lambda
from .level_choice import LevelChoice, RoundFacts, choose_level, given_lambda
from .previous_round import PreviousRound
from .rows import Credit
from .values import cross_fitted_values

EPSILON = 1e-6
"""Added to the standard deviation that norm `others` divides by."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What is kept of a group until the round is whole: `checked`, of each rollout why it is left out, if it is, else
    its id; the rewards; and the episodes, where there are turns and nothing is left out."""

    checked: tuple[RolloutAdvantage, ...] = ()
    rewards: tuple[float, ...] = ()
    episodes: tuple[Episode, ...] = ()


class RoundCredits:
    """Takes a round's groups one after the other, and gives all of them their advantages once it has them.

    Args:
        level: `lambda`, or `auto`: `trajectory` or `lambda`, with the reason in the report.
        lam: λ of GAE(λ), in [0, 1] (default: λ̂ of the round before, else 1).
        norm: `none`, or `others`, at whichever level: divided by the standard deviation of the *other* groups'
            advantages + 1e-6. No action of a group moves its own divisor, so that the expected update keeps its
            direction.
        before: the round before.
        worth: the score as it is learnt from (contrast weights).

    Raises:
        TrainError: another norm or λ.
    """

    def __init__(
        self,
        *,
        level: str = "lambda",
        lam: float | None = None,
        norm: str = "none",
        before: PreviousRound | None = None,
        worth: Callable[[Score], Score] | None = None,
    ) -> None:
        if norm not in ("none", "others"):
            raise TrainError(
                f"norm {norm!r} at level {level}; expected none, or others (the standard deviation of the other groups'"
                " advantages): a divisor from the group itself would bias it"
            )
        if lam is not None and level == "auto":
            raise TrainError(f"level auto with lam {lam}; auto chooses λ itself: leave it out, or take level lambda")
        if lam is not None:
            require_lambda(lam)
        self.level, self.norm = level, norm
        self._lam, self._before, self._worth = lam, before, worth
        self._facts = RoundFacts()
        self._groups: list[Collected] = []
        self._estimate: LambdaEstimate | None = None

    def __call__(self, group: Group) -> list[Credit | str]:
        """Of each rollout the reason why it is left out, else what stands for its advantages until they are known."""
        if not group.rollouts:
            self._groups.append(Collected())
            return []
        if self._worth is not None:
            made = (replace(rollout, score=self._worth(rollout.score)) for rollout in group.rollouts)
            group = replace(group, rollouts=tuple(made))
        scores = [rollout.score for rollout in group.rollouts]
        self._facts.add(group)
        by_turns = self.level == "lambda" or self._facts.by_turns
        happened = [[len(turn.steps) for turn in rollout.trace.turns] for rollout in group.rollouts]
        checked = advantages(scores, level="lambda" if by_turns else "trajectory", happened=happened).rollouts
        rewards = tuple(0.0 if score.lower is None else score.lower for score in scores)
        whole = by_turns and not any(one.left_out for one in checked)
        episodes = (Episode.of(rollout.score, rollout.trace) for rollout in group.rollouts if whole)
        self._groups.append(Collected(checked=checked, rewards=rewards, episodes=tuple(episodes)))
        return [one.brief or RolloutAdvantage(trace_id=one.trace_id, scalar=0.0) for one in checked]

    @property
    def choice(self) -> LevelChoice:
        """The level and λ of the groups so far."""
        return (
            choose_level(self._facts, self._before) if self.level == "auto" else given_lambda(self._lam, self._before)
        )

    def advantages(self) -> list[GroupAdvantages]:
        """Those of each group, in the order in which they were given."""
        choice = self.choice
        if choice.level == "trajectory":
            return self._of_trajectories()
        values = cross_fitted_values([group.episodes for group in self._groups])
        self._estimate = estimate_lambda([group.episodes for group in self._groups], values)
        found = [
            [
                generalized_advantages(episode.rewards_T, value, choice.lam)
                for episode, value in zip(group.episodes, own, strict=True)
            ]
            for group, own in zip(self._groups, values, strict=True)
        ]
        return [
            GroupAdvantages(
                level="lambda",
                norm="none",
                rollouts=tuple(
                    _rollout(episode, values_T / divisor) for episode, values_T in zip(group.episodes, own, strict=True)
                )
                or group.checked,
            )
            for group, own, divisor in zip(self._groups, found, self._divisors(found), strict=True)
        ]

    def _of_trajectories(self) -> list[GroupAdvantages]:
        """Eq. 5 without Fnorm, over the divisor of `norm`."""
        found = [_centred(group) for group in self._groups]
        return [
            GroupAdvantages(
                level="trajectory",
                norm="none",
                rollouts=tuple(
                    RolloutAdvantage(trace_id=one.trace_id, scalar=zeroed(float(value[0]) / divisor))
                    for one, value in zip(group.checked, own, strict=bool(own))
                )
                or group.checked,
            )
            for group, own, divisor in zip(self._groups, found, self._divisors(found), strict=True)
        ]

    def _divisors(self, found: list[list[Floats]]) -> list[float]:
        return _others_deviation(found) if self.norm == "others" else [1.0] * len(found)

    @property
    def report(self) -> Mapping[str, JSON]:
        """What stands of it in report.json under `credit`, once the advantages are known."""
        choice = self.choice
        out: dict[str, JSON] = {"level": choice.level}
        if choice.level == "lambda":
            out |= {"lambda": choice.lam, "lambda_from": choice.lambda_from}
            out["estimate"] = None if self._estimate is None else self._estimate.to_json()
        return out if choice.why is None else {**out, "why": choice.why}


def _centred(group: Collected) -> list[Floats]:
    """Of each rollout its reward less the group's mean, (1,); none of a group of which one is left out."""
    if any(one.left_out for one in group.checked) or not group.rewards:
        return []
    mean = float(np.mean(group.rewards))
    return [np.array([zeroed(reward - mean)]) for reward in group.rewards]


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
