"""Contrast weights, after POW3R (arXiv 2605.20164): items that about half of the rollouts were paid in the round before
weigh more in what is learnt, and nothing else does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score, TurnScore

from .item_tally import ItemKey
from .previous_round import PreviousRound

FALLS = 2
"""Rounds in which the mean reward fell, after which contrast is off."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """w′ ∝ w · ((1 − η) + η · 4p̂(1 − p̂)), normalised within the turn: `eta` is η, `rates` are p̂, of the round before
    and so fixed before the first rollout of this one. `off` says why the base weights hold, None where they do not.

    >>> Contrast(eta=0.5, rates={(0, "a"): 0.5, (0, "b"): 1.0}).weights([(0, "a", 0.5), (0, "b", 0.5)])
    [0.6666666666666666, 0.3333333333333333]
    """

    eta: float = 0.0
    rates: Mapping[ItemKey, float] = field(default_factory=dict)
    off: str | None = None
    mean: float | None = None
    falls: int = 0

    @classmethod
    def of(cls, eta: float, before: PreviousRound | None, mean: float | None) -> Contrast:
        """The weights of a round whose mean reward is `mean`."""
        fell = before is not None and before.mean is not None and mean is not None and mean < before.mean - 1e-9
        falls = (0 if before is None else before.falls) + fell
        off = None
        if falls >= FALLS:
            off = f"the mean reward fell in {falls} rounds"
        elif before is None or not before.rates:
            off = "no round before says how often the items are paid"
        return cls(eta=eta, rates={} if before is None else before.rates, off=off, mean=mean, falls=falls)

    def weights(self, items: list[tuple[int | None, str, float]]) -> list[float]:
        """w′ of a turn's items (turn, item, w), which sum to what the w do. An item that the round before did not have
        counts as paid by half."""
        made = []
        for turn, item, weight in items:
            rate = self.rates.get((turn, item), 0.5)
            made.append(weight * ((1 - self.eta) + self.eta * 4 * rate * (1 - rate)))
        total, base = math.fsum(made), math.fsum(weight for _, _, weight in items)
        return [one * base / total for one in made] if total > 0 else [weight for _, _, weight in items]

    def __call__(self, score: Score) -> Score:
        """The score as it is learnt from. Raises TrainError where the reward is not of the items alone."""
        if self.off is not None:
            return score
        if score.components or not score.turns:
            raise TrainError(
                f"contrast weights are of a checklist's items, and the score of trace {score.trace_id!r} has"
                f" {'the components of a stack' if score.components else 'no turns'}; leave contrast out"
            )
        turns = tuple(self._turn(turn) for turn in score.turns)
        whole = all(turn.reward is not None for turn in turns) and score.reward is not None
        reward = math.fsum(turn.reward or 0.0 for turn in turns) / len(turns) if whole else None
        return replace(score, turns=turns, reward=reward, lower=None, upper=None)

    def _turn(self, turn: TurnScore) -> TurnScore:
        found = self.weights([(turn.turn, one.item, one.weight) for one in turn.verdicts])
        verdicts = tuple(replace(one, weight=weight) for one, weight in zip(turn.verdicts, found, strict=True))
        known = turn.reward is not None and all(one.pays is not None for one in verdicts)
        reward = min(1.0, math.fsum(one.weight * (one.pays or 0.0) for one in verdicts)) if known else None
        return replace(turn, verdicts=verdicts, reward=reward)

    def to_json(self) -> dict[str, JSON]:
        return {"eta": self.eta, "on": self.off is None, "why": self.off, "mean": self.mean, "falls": self.falls}


def check_contrast(eta: float | None, norm: str) -> None:
    """Raises TrainError on an η that cannot be meant, and beside a norm from the group itself."""
    if eta is None:
        return
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta < 1:
        raise TrainError(f"contrast {eta!r}; expected η in [0, 1), for example 0.5: 0 keeps the base weights")
    if norm == "std":
        raise TrainError(
            "contrast with norm std: both weigh by how much rollouts differ, the second by the group at hand; leave"
            " norm at none"
        )


__all__ = ["Contrast", "check_contrast"]
