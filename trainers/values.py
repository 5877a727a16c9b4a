"""V̂, the value of a dialogue before a turn: ridge regression over a round of groups, cross-fitted by group.

The values of a group are fitted on other groups alone, and what they say of a rollout follows from the other rollouts
of its group and from what it did before the turn. So an action never moves its own baseline, and GAE(1) is unbiased
whatever the fit is worth (docs/method.md §5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .episodes import Episode, Floats, others_means

FOLDS = 10
"""Folds of groups, the most."""
FEWEST = 3
"""Groups below which nothing is fitted: V̂ is then the other rollouts' mean."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e4)
"""Of the ridge, beside standardised features, a row each; the last leaves hardly more than the others' mean."""
ITEMS = 256
"""Items that have a feature of their own, the most frequent ones."""


def cross_fitted_values(groups: Sequence[Sequence[Episode]]) -> list[list[Floats]]:
    """V̂ of every turn of every episode of every group, (T,) each, in [0, 1]: what is still to be earned from it on.

    The other rollouts' mean return at the turn is the start, and the regression is of what it misses: on the turn, that
    mean, how many of the others reached the turn, and before it, what was earned, the items' verdicts, failed calls,
    calls and steps.
    """
    means = [others_means([one.turns for one in group], [one.returns_T for one in group]) for group in groups]
    if len(groups) < FEWEST:
        return means
    features = _features(groups, means)
    folds = np.arange(len(groups)) % min(FOLDS, len(groups))
    targets = [
        np.concatenate([one.returns_T - mean for one, mean in zip(group, own, strict=True)] or [np.zeros(0)])
        for group, own in zip(groups, means, strict=True)
    ]
    fitted = cross_fitted(features, targets, folds)
    found = []
    for group, own, value in zip(groups, means, fitted, strict=True):
        ends = np.cumsum([len(one.turns) for one in group])[:-1]
        parts = np.split(value, ends) if group else []
        found.append([np.clip(mean + part, 0.0, 1.0) for mean, part in zip(own, parts, strict=True)])
    return found


def cross_fitted(features: Sequence[Floats], targets: Sequence[Floats], folds: np.ndarray) -> list[Floats]:
    """What ridge regression on the groups of other folds predicts of each group's rows: the (N, F) features and (N,)
    targets of each group, and its fold. The penalty is the one that predicts best between these other folds."""
    numbers = np.unique(folds)
    moments = {fold: _moments(features, targets, np.flatnonzero(folds == fold)) for fold in numbers}
    size = next(iter(moments.values())).shape
    coefficients = {}
    for fold in numbers:
        # added up, never subtracted from the whole: what rounding left of this fold's own rows would be fitted, too
        rest = [one for one in numbers if one != fold]
        inner = rest if len(rest) > 1 else []
        errors = np.zeros(len(PENALTIES))
        for left_out in inner:
            betas = _ridge(sum((moments[one] for one in rest if one != left_out), np.zeros(size)))
            errors += [_squared_error(moments[left_out], beta) for beta in betas]
        betas = _ridge(sum((moments[one] for one in rest), np.zeros(size)))
        coefficients[fold] = betas[int(np.argmin(errors)) if inner else -1]
    return [_with_one(rows) @ coefficients[fold] for rows, fold in zip(features, folds, strict=True)]


def _features(groups: Sequence[Sequence[Episode]], means: Sequence[Sequence[Floats]]) -> list[Floats]:
    """(N, F) of each group, its rollouts' turns one after the other."""
    turns = sorted({turn for group in groups for one in group for turn in one.turns})
    names = Counter(item for group in groups for one in group for item in one.items)
    items = {item: at for at, (item, _) in enumerate(names.most_common(ITEMS))}
    place = {turn: at for at, turn in enumerate(turns)}
    found = []
    for group, own in zip(groups, means, strict=True):
        reached = Counter(turn for one in group for turn in one.turns)
        rows = []
        for one, mean in zip(group, own, strict=True):
            which = np.zeros((len(one.turns), len(turns)))
            which[np.arange(len(one.turns)), [place[turn] for turn in one.turns]] = 1.0
            others = np.array([(reached[turn] - 1) / max(1, len(group) - 1) for turn in one.turns])
            verdicts = np.zeros((len(one.turns), len(items)))
            kept = [(at, items[item]) for at, item in enumerate(one.items) if item in items]
            if kept:
                verdicts[:, [to for _, to in kept]] = one.verdicts_TC[:, [at for at, _ in kept]]
            rows.append(np.column_stack([which, mean, others, others == 0, one.history_TF, verdicts]))
        found.append(np.concatenate(rows) if rows else np.zeros((0, 0)))
    width = max((rows.shape[1] for rows in found), default=0)
    return [rows if len(rows) else np.zeros((0, width)) for rows in found]


def _with_one(rows: Floats) -> Floats:
    return np.column_stack([np.ones(len(rows)), rows])


def _moments(features: Sequence[Floats], targets: Sequence[Floats], groups: np.ndarray) -> Floats:
    """(F + 2, F + 2) sums of products of 1, the features and the target over the rows of some groups."""
    rows = np.concatenate([np.column_stack([_with_one(features[at]), targets[at]]) for at in groups])
    return np.asarray(rows.T @ rows)


def _ridge(moments: Floats) -> Floats:
    """(P, F + 1) the intercept and the coefficients for each penalty, from sums of products. A feature that does not
    vary has no coefficient."""
    size = moments.shape[0] - 2
    count = moments[0, 0]
    beta = np.zeros((len(PENALTIES), size + 1))
    if count == 0:
        return beta
    mean = moments[0] / count
    centred = moments / count - np.outer(mean, mean)
    scale = np.sqrt(np.clip(np.diag(centred)[1:-1], 0.0, None))
    varies = scale > 1e-6 * (1.0 + np.abs(mean[1:-1]))
    if varies.any():
        kept = np.flatnonzero(varies)
        divide = scale[kept]
        values, vectors = np.linalg.eigh(centred[1:-1, 1:-1][np.ix_(kept, kept)] / np.outer(divide, divide))
        turned = vectors.T @ (centred[1:-1, -1][kept] / divide)
        for row, penalty in enumerate(PENALTIES):
            beta[row, kept + 1] = vectors @ (turned / (np.clip(values, 0.0, None) + penalty)) / divide
    beta[:, 0] = mean[-1] - beta[:, 1:] @ mean[1:-1]
    return beta


def _squared_error(moments: Floats, beta: Floats) -> float:
    """Σ (y − ŷ)² over the rows of these sums of products."""
    line = np.append(-beta, 1.0)
    return float(line @ moments @ line)


__all__ = ["cross_fitted", "cross_fitted_values"]
