"""How well rewards order what happened, and how sure the figures are.

Everything is a function of plain sequences. Rollouts of one task resemble each other, so that every interval resamples
whole *clusters* (tasks), never single rollouts: the percentile bootstrap of Davison & Hinkley (1997), §2.4 and §3.8,
seeded. A figure that the data does not determine (no pair with different outcomes, all rewards equal) is None, never
0.5 or 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cm2_agent.analysis.bootstrap import Array, Interval, bootstrap, codes, ratio


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a reward agrees with an outcome known from elsewhere, over `n` rollouts.

    `auc`: of two rollouts with different outcomes, the probability that the better one has the higher reward, ties
    counting 1/2 (for 0/1 outcomes the area under the ROC curve). `auc_within`: the same over the `pairs` pairs of one
    group, the only order that GRPO uses. `spearman`: rank correlation, ties by average rank. `kendall`: τ-b, concordant
    less discordant pairs over what they could be given the ties. `ci` holds 95 % intervals under the same names. None
    where undetermined."""

    n: int
    auc: float | None
    auc_within: float | None
    pairs: int
    spearman: float | None
    kendall: float | None = None
    ci: Mapping[str, Interval | None] = field(default_factory=dict)


def agreement(
    rewards: Sequence[float],
    outcomes: Sequence[float],
    groups: Sequence[Hashable | None],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Rewards against outcomes, one entry a rollout. A rollout whose group is None is in no pair of `auc_within`.

    `clusters` (by default the groups; a rollout without one is its own) are what the intervals resample. Raises
    ValueError on sequences of different lengths, or NaN."""
    reward, outcome = _numbers(rewards, outcomes)
    if clusters is None:
        clusters = [("alone", index) if group is None else ("group", group) for index, group in enumerate(groups)]
    if len(groups) != len(reward) or len(clusters) != len(reward):
        raise ValueError(
            f"{len(reward)} rewards, {len(groups)} groups, {len(clusters)} clusters; expected as many of each"
        )
    cluster = codes(clusters)
    size = int(cluster.max()) + 1 if len(cluster) else 0
    wins, pairs = _between(reward, outcome, cluster, size)
    wins_in, pairs_in = _within(reward, outcome, _group_codes(groups), cluster, size)

    def total(weights: Array) -> float | None:
        return ratio(weights @ wins @ weights, weights @ pairs @ weights)

    def within(weights: Array) -> float | None:
        return ratio(weights @ wins_in, weights @ pairs_in)

    def ranks(weights: Array) -> float | None:
        chosen = np.repeat(np.arange(len(reward)), weights[cluster].astype(int))
        return _spearman(reward[chosen], outcome[chosen])

    ordered = _ordered(reward, outcome, cluster, size)

    every = np.ones(size)
    figures: dict[str, Callable[[Array], float | None]] = {
        "auc": total,
        "auc_within": within,
        "spearman": ranks,
        "kendall": lambda weights: _kendall(*(float(weights @ each @ weights) for each in ordered)),
    }
    return Agreement(
        n=len(reward),
        pairs=int(pairs_in.sum()) // 2,
        **{name: figure(every) for name, figure in figures.items()},
        ci={name: bootstrap(figure, size, draws=draws, seed=seed) for name, figure in figures.items()},
    )


def differences(
    rewards: Sequence[float],
    others: Sequence[float],
    outcomes: Sequence[float],
    groups: Sequence[Hashable | None],
    clusters: Sequence[Hashable],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float | None, Interval | None]]:
    """`auc`, `auc_within` and `kendall` of the rewards less those of other values of the same rollouts, with paired
    intervals: each draw resamples the clusters of both alike. Raises ValueError as `agreement` does."""
    reward, outcome = _numbers(rewards, outcomes)
    other, _ = _numbers(others, outcomes)
    cluster, group = codes(clusters), _group_codes(groups)
    size = int(cluster.max()) + 1 if len(cluster) else 0
    gained = _between(reward, outcome, cluster, size)[0] - _between(other, outcome, cluster, size)[0]
    gained_in = _within(reward, outcome, group, cluster, size)[0] - _within(other, outcome, group, cluster, size)[0]
    pairs, pairs_in = _between(reward, outcome, cluster, size)[1], _within(reward, outcome, group, cluster, size)[1]
    ordered = [_ordered(values, outcome, cluster, size) for values in (reward, other)]

    def kendalls(weights: Array) -> float | None:
        left, right = (_kendall(*(float(weights @ each @ weights) for each in sums)) for sums in ordered)
        return None if left is None or right is None else left - right

    figures: dict[str, Callable[[Array], float | None]] = {
        "auc": lambda weights: ratio(weights @ gained @ weights, weights @ pairs @ weights),
        "auc_within": lambda weights: ratio(weights @ gained_in, weights @ pairs_in),
        "kendall": kendalls,
    }
    return {
        name: (figure(np.ones(size)), bootstrap(figure, size, draws=draws, seed=seed))
        for name, figure in figures.items()
    }


def auc(rewards: Sequence[float], outcomes: Sequence[float]) -> float | None:
    """P(reward of the better > reward of the worse) + ½ P(equal), over pairs with different outcomes; None where there
    is no such pair."""
    return auc_within(rewards, outcomes, [0] * len(rewards))


def auc_within(rewards: Sequence[float], outcomes: Sequence[float], groups: Sequence[Hashable | None]) -> float | None:
    """`auc` over the pairs of one group only, all groups' pairs counting alike (Σ wins / Σ pairs)."""
    reward, outcome = _numbers(rewards, outcomes)
    wins, pairs = _within(reward, outcome, _group_codes(groups), np.zeros(len(reward), int), 1)
    return ratio(wins.sum(), pairs.sum())


def spearman(rewards: Sequence[float], outcomes: Sequence[float]) -> float | None:
    """Spearman's rank correlation with average ranks for ties; None under two entries or where one side is constant."""
    return _spearman(*_numbers(rewards, outcomes))


def kendall(rewards: Sequence[float], outcomes: Sequence[float]) -> float | None:
    """Kendall's τ-b (1945), which takes ties on either side out of what could be reached; None under two entries or
    where one side is constant.

    >>> round(kendall([0.1, 0.4, 0.4, 1.0], [0, 0, 1, 1]), 4)
    0.6708
    """
    reward, outcome = _numbers(rewards, outcomes)
    sums = _ordered(reward, outcome, np.zeros(len(reward), int), 1)
    return _kendall(*(float(each.sum()) for each in sums))


def _between(reward: Array, outcome: Array, cluster: Array, size: int) -> tuple[Array, Array]:
    """(clusters, clusters) sums of wins and counts of ordered pairs (better, worse) between, and within, clusters."""
    wins, pairs = np.zeros((size, size)), np.zeros((size, size))
    for index in range(len(reward)):
        worse = outcome < outcome[index]
        won = (reward[index] > reward[worse]) + 0.5 * (reward[index] == reward[worse])
        wins[cluster[index]] += np.bincount(cluster[worse], won, size)
        pairs[cluster[index]] += np.bincount(cluster[worse], minlength=size)
    return wins, pairs


def _within(reward: Array, outcome: Array, group: Array, cluster: Array, size: int) -> tuple[Array, Array]:
    """(clusters,) wins and pairs inside groups, both counted from each member of a pair, half of it to each member's
    cluster."""
    wins, pairs = np.zeros(size), np.zeros(size)
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []:
        if group[members[0]] < 0:
            continue
        for index in members:
            other = members[outcome[members] != outcome[index]]
            better = np.where(outcome[other] < outcome[index], 1.0, -1.0)
            gain = better * (np.where(reward[index] > reward[other], 1.0, 0.0) - (reward[index] < reward[other]))
            wins[cluster[index]] += ((1 + gain) / 2).sum()
            pairs[cluster[index]] += len(other)
    return wins, pairs


def _spearman(reward: Array, outcome: Array) -> float | None:
    if len(reward) < 2 or (reward == reward[0]).all() or (outcome == outcome[0]).all():
        return None
    from scipy.stats import rankdata

    left, right = rankdata(reward), rankdata(outcome)
    left, right = left - left.mean(), right - right.mean()
    return float(np.clip((left @ right) / math.sqrt((left @ left) * (right @ right)), -1.0, 1.0))


def _ordered(reward: Array, outcome: Array, cluster: Array, size: int) -> tuple[Array, Array, Array]:
    """(clusters, clusters) sums over ordered pairs: concordant less discordant ones, those with different rewards,
    those with different outcomes."""
    found = np.zeros((3, size, size))
    for index in range(len(reward)):
        one, other = (
            np.where(values > values[index], 1.0, 0.0) - (values < values[index]) for values in (reward, outcome)
        )
        for place, kind in enumerate((one * other, np.abs(one), np.abs(other))):
            found[place, cluster[index]] += np.bincount(cluster, kind, size)
    return found[0], found[1], found[2]


def _kendall(balance: float, rewards: float, outcomes: float) -> float | None:
    return None if not rewards * outcomes else float(balance / math.sqrt(rewards * outcomes))


def _numbers(rewards: Sequence[float], outcomes: Sequence[float]) -> tuple[Array, Array]:
    reward, outcome = np.asarray(rewards, dtype=float), np.asarray(outcomes, dtype=float)
    if reward.shape != outcome.shape or reward.ndim != 1:
        raise ValueError(f"{len(reward)} rewards and {len(outcome)} outcomes; expected as many of each")
    if np.isnan(reward).any() or np.isnan(outcome).any():
        raise ValueError("a reward or an outcome is NaN; leave out what is NULL first")
    return reward, outcome


def _group_codes(groups: Sequence[Hashable | None]) -> Array:
    seen: dict[Hashable, int] = {}
    return np.asarray([-1 if group is None else seen.setdefault(group, len(seen)) for group in groups], dtype=int)
