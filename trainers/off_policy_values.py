"""What rollouts of one policy say another would earn, from the ratios of the two policies' probabilities: the
self-normalised and the doubly robust estimate of docs/method.md §6, in plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cm2_agent.types.json_values import JSON

from .cluster_intervals import Bounds, Figure, intervals
from .rows import Floats

LEAST_SHARE = 0.1
"""The effective sample size over the number of rollouts, below which nothing is estimated."""
LEAST_TASKS = 30
_FURTHEST = 300.0
"""The largest |log ρ| that is told from a larger one: its square is still a number."""
_SAME = 1e-12
"""Rewards that differ by no more differ by rounding."""
_VALUE, _GAIN = (0.0, 1.0), (-1.0, 1.0)
_Z2 = 3.841458820694124
"""The square of the normal distribution's 97.5 % point."""


@dataclass(frozen=True, kw_only=True)
class WeighedRollout:
    """A rollout of T ≥ 1 turns of a task: what each turn earned (R_t/L, together the reward, in [0, 1]), V̂ before each
    turn, and log π_new − log μ of what each wrote."""

    task: str
    rewards_T: Floats
    values_T: Floats
    log_ratios_T: Floats


@dataclass(frozen=True, kw_only=True)
class ValueEstimate:
    """A mean reward, or a difference of two, and its 95 % interval; `low` and `high` are None where one task alone
    leaves nothing to compare."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, JSON]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True)
class OffPolicyValues:
    """Mean rewards on the same rollouts: `old` of the policy that wrote them, the others of the new one, and `gain_…`
    the new one's less the old one's. `weight` is the mean ρ, which is 1 in expectation; `effective` is (Σρ)²/Σρ², from
    1 to the number of rollouts."""

    rollouts: int
    tasks: int
    effective: float
    weight: ValueEstimate
    old: ValueEstimate
    self_normalised: ValueEstimate
    doubly_robust: ValueEstimate
    gain_self_normalised: ValueEstimate
    gain_doubly_robust: ValueEstimate

    @property
    def share(self) -> float:
        """The effective sample size as a share of the rollouts, in (0, 1]."""
        return self.effective / self.rollouts

    @property
    def refusal(self) -> str | None:
        """Why nothing may be estimated from so little, with the figure, what was expected and what to do; None where
        it may."""
        reasons = []
        if self.tasks < LEAST_TASKS:
            reasons.append(
                f"{self.tasks} tasks are covered, expected {LEAST_TASKS} or more: hold the old policy's dialogues on"
                " more tasks (cm2 run), and score them"
            )
        if self.share < LEAST_SHARE:
            reasons.append(
                f"the effective sample size is {self.effective:.1f} of {self.rollouts} rollouts ({self.share:.1%}),"
                f" expected {LEAST_SHARE:.0%} or more: the new policy is too far from the one that wrote them. Evaluate"
                " it on rollouts of its own (cm2 run), or on those of a policy nearer to it"
            )
        return "; ".join(reasons) or None


def off_policy_values(rollouts: Sequence[WeighedRollout], *, seed: int = 0) -> OffPolicyValues:
    """Both estimates from at least one rollout.

    With ρ_i = Π_t π_new/μ over all of rollout i, and ρ_{i,1:t} over its turns up to t:

        self-normalised   Σ_i ρ_i R_i / Σ_i ρ_i
        doubly robust     mean_i [V̂(h_0) + Σ_t ρ_{i,1:t} (R_t/L + V̂(h_{t+1}) − V̂(h_t))]

    The second is unbiased for every V̂ that the turn and what follows it do not move. Intervals are over tasks, those of
    the differences over the same draws of tasks. Raises ValueError where there is no rollout.

    >>> better = WeighedRollout(task="a", rewards_T=np.ones(1), values_T=np.full(1, 0.5), log_ratios_T=np.log([1.5]))
    >>> worse = WeighedRollout(task="b", rewards_T=np.zeros(1), values_T=np.full(1, 0.5), log_ratios_T=np.log([0.5]))
    >>> found = off_policy_values([better, worse])
    >>> found.old.value, round(found.self_normalised.value, 3), round(found.doubly_robust.value, 3)
    (0.5, 0.75, 0.75)
    """
    if not rollouts:
        raise ValueError("no rollouts; expected at least one")
    figures = figures_of(rollouts)
    bounds = dict(zip(figures, intervals(list(figures.values()), seed=seed), strict=True))
    logs, rewards = _sums(rollouts)
    shifted = np.exp(logs - logs.max())
    effective = float(shifted.sum() ** 2 / (shifted**2).sum())
    tasks = len({one.task for one in rollouts})
    if np.ptp(rewards) <= _SAME and tasks > 1:
        doubts = _of_one_reward(float(rewards[0]), min(tasks, effective), differs=bool(logs.any()))
        bounds |= {name: _wider(bounds[name], one) for name, one in doubts.items()}
    limits: dict[str, Bounds] = {"weight": (0.0, np.inf), "gain_self_normalised": _GAIN, "gain_doubly_robust": _GAIN}
    made = {name: _estimate(one.value, bounds[name], limits.get(name, _VALUE)) for name, one in figures.items()}
    return OffPolicyValues(rollouts=len(rollouts), tasks=tasks, effective=effective, **made)


def figures_of(rollouts: Sequence[WeighedRollout]) -> dict[str, Figure]:
    """What is estimated, by its name in OffPolicyValues, as sums by task."""
    place: dict[str, int] = {}
    tasks = np.array([place.setdefault(one.task, len(place)) for one in rollouts])
    logs, rewards = _sums(rollouts)
    shifted = np.exp(logs - logs.max())
    robust = np.array([_doubly_robust(one) for one in rollouts])

    def by_task(values: Floats) -> Floats:
        return np.bincount(tasks, values, len(place)).astype(np.float64)

    number = by_task(np.ones(len(rollouts)))
    old = Figure.quotient(by_task(rewards), number)
    normalised = Figure.quotient(by_task(shifted * rewards), by_task(shifted))
    return {
        "weight": Figure.quotient(by_task(np.exp(logs)), number),
        "old": old,
        "self_normalised": normalised,
        "doubly_robust": Figure.quotient(by_task(robust), number),
        "gain_self_normalised": normalised.minus(old),
        "gain_doubly_robust": Figure.quotient(by_task(robust - rewards), number),
    }


def _sums(rollouts: Sequence[WeighedRollout]) -> tuple[Floats, Floats]:
    """(N,) log ρ and (N,) R."""
    logs = np.array([one.log_ratios_T.sum() for one in rollouts])
    return np.clip(logs, -_FURTHEST, _FURTHEST), np.array([one.rewards_T.sum() for one in rollouts])


def _doubly_robust(one: WeighedRollout) -> float:
    values = one.values_T.tolist()
    found, log_ratio = values[0], 0.0
    turns = zip(one.log_ratios_T.tolist(), one.rewards_T.tolist(), values, [*values[1:], 0.0], strict=True)
    for log, reward, value, after in turns:
        log_ratio += log
        found += math.exp(min(max(log_ratio, -_FURTHEST), _FURTHEST)) * (reward + after - value)
    return float(found)


def _of_one_reward(reward: float, number: float, *, differs: bool) -> dict[str, Bounds]:
    """The intervals where every reward is the same, which no resampling would doubt: Wilson's upper bound u of what
    was seen in 0 of so many trials says how often another reward may come, of anywhere in [0, 1]."""
    unseen = _Z2 / (number + _Z2)
    down, up = unseen * reward, unseen * (1 - reward)
    value, gain = (reward - down, reward + up), (-down, up) if differs else (0.0, 0.0)
    found: dict[str, Bounds] = {"old": value, "self_normalised": value, "doubly_robust": value}
    return found | {"gain_self_normalised": gain, "gain_doubly_robust": gain}


def _wider(one: Bounds | None, other: Bounds) -> Bounds:
    return other if one is None else (min(one[0], other[0]), max(one[1], other[1]))


def _estimate(value: float, bounds: Bounds | None, limits: Bounds) -> ValueEstimate:
    """An estimate with its interval cut to what can be, though never short of the estimate itself: the doubly robust
    one may lie outside."""
    if bounds is None:
        return ValueEstimate(value=value, low=None, high=None)
    low, high = (float(min(max(bound, limits[0]), limits[1])) for bound in bounds)
    return ValueEstimate(value=value, low=min(low, value), high=max(high, value))


__all__ = ["OffPolicyValues", "ValueEstimate", "WeighedRollout", "figures_of", "off_policy_values"]
