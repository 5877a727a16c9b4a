"""The rule of promotion: a candidate replaces the promoted policy only where it is better by more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cm2_agent.analysis.bootstrap import Interval, bootstrap, mean, ratio
from cm2_agent.analysis.sign_flip import DRAWS, sign_flip
from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON

ALPHA = 0.05
"""The chance that a loop in which no candidate is better promotes one, at most."""
Values = Mapping[str, Sequence[float | None]]
"""What each task's dialogues were worth, by the task's id; None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a candidate was promoted, and why.

    Args:
        promoted: Whether it was.
        why: The reason in words.
        tasks: Tasks that were compared.
        left_out: Tasks of which a value is missing, by a judge's failure say.
        candidate: Its mean over the tasks; None where none could be compared.
        before: The promoted policy's mean over the same tasks.
        gain: The mean difference.
        interval: Its 95 % interval, by the bootstrap over tasks.
        p: Of the one-sided sign-flip test.
        share: The significance that this round may spend: promoted where p ≤ share.
    """

    promoted: bool
    why: str
    tasks: int = 0
    left_out: int = 0
    candidate: float | None = None
    before: float | None = None
    gain: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    share: float

    def to_json(self) -> dict[str, JSON]:
        return {**asdict(self), "interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True, kw_only=True)
class PromotionRule:
    """Spends significance over the rounds of a loop and decides each round (docs/method.md, "Promotion").

    Every round draws new dialogues with both policies, so that two draws of one policy differ by chance alone. Where
    the same tasks are compared in every round, the answers of earlier rounds (promoted or not, one bit each) may have
    led to candidates that suit these tasks: each of the 2^(r−1) answers that may come before round r gets the same
    share, α/(N·2^(r−1)). Where each round has tasks of its own, none is needed: α/N.

    Args:
        rounds: N, 1 or more.
        alpha: α in (0, 1): the chance to promote anything in a loop where nothing is better, at most.
        fresh: whether each round has tasks of its own.

    Raises:
        TrainError: a number that cannot be meant.

    >>> rule = PromotionRule(rounds=4)
    >>> [rule.share(number) for number in (1, 2, 3, 4)]
    [0.0125, 0.00625, 0.003125, 0.0015625]
    >>> better = {f"task {n}": [1.0, 1.0] for n in range(10)}
    >>> worse = {f"task {n}": [0.5, 1.0] for n in range(10)}
    >>> rule.decide(1, better, worse).promoted, rule.decide(1, worse, better).promoted
    (True, False)
    """

    rounds: int
    alpha: float = ALPHA
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.alpha < 1:
            raise TrainError(f"rounds {self.rounds}, alpha {self.alpha}; expected 1 or more, and a share in (0, 1)")

    def share(self, number: int) -> float:
        """What round `number` (1-based) may spend."""
        histories = 1 if self.fresh else 2 ** (number - 1)
        return self.alpha / (self.rounds * histories)

    @property
    def least_tasks(self) -> int:
        """Tasks without which no result of the last round could be significant. Raises TrainError where no number of
        them would do."""
        last = self.share(self.rounds)
        if last * (DRAWS + 1) < 1:
            raise TrainError(
                f"{self.rounds} rounds leave the last one {last:.1g} of significance, less than the test can show; give"
                " fewer rounds, or tasks of its own to each (fresh)"
            )
        return math.ceil(-math.log2(last))

    def decide(self, number: int, candidate: Values, before: Values, *, seed: int = 0) -> Decision:
        """Compare the candidate of round `number` with the promoted policy on the same tasks.

        Args:
            number: of the round, 1-based.
            candidate: what its dialogues were worth.
            before: what those of the promoted policy were worth.
            seed: of the test's draws.
        """
        share = self.share(number)
        pairs, left_out = paired(candidate, before)
        if not pairs:
            return Decision(promoted=False, why="no task could be compared", left_out=left_out, share=share)
        differences = [one - other for one, other in pairs.values()]
        p = sign_flip(differences, seed=seed)
        gain, interval = mean_gain(differences)
        better = gain > 0 and p <= share
        why = "better by more than chance" if better else "not better by more than chance"
        return Decision(
            promoted=better,
            why=f"{why}: p {p:.2g}, at most {share:.2g} expected",
            tasks=len(pairs),
            left_out=left_out,
            candidate=mean([one for one, _ in pairs.values()]),
            before=mean([other for _, other in pairs.values()]),
            gain=gain,
            interval=interval,
            p=p,
            share=share,
        )


def paired(one: Values, other: Values) -> tuple[dict[str, tuple[float, float]], int]:
    """Two policies' means by task, where every value of the task is known, and how many tasks were left out."""
    pairs: dict[str, tuple[float, float]] = {}
    for task, values in one.items():
        known = [value for value in values if value is not None]
        rest = [value for value in other.get(task, ()) if value is not None]
        if known and rest and len(known) == len(values) and len(rest) == len(other[task]):
            pairs[task] = mean(known), mean(rest)
    return pairs, len(one.keys() | other.keys()) - len(pairs)


def mean_gain(differences: Sequence[float]) -> tuple[float, Interval | None]:
    """The mean of differences, one a task, and its 95 % interval by the bootstrap over tasks; None for one task."""
    value = np.asarray(differences, dtype=float)
    return mean(differences), bootstrap(lambda weights: ratio(weights @ value, weights.sum()), len(value))
