"""V̂, the value of a dialogue before a turn: ridge regression over a round of groups, cross-fitted by group.

The values of a group are fitted on other groups alone, and what they say of a rollout follows from the other rollouts
of its group and from what it did before the turn. So an action never moves its own baseline, and GAE(1) is unbiased
whatever the fit is worth (docs/method.md §5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
        np.concatenate([one.returns_T - mean for one, mean in zip(group, own, strict=True)] or [np.zeros(0)])[:, None]
        for group, own in zip(groups, means, strict=True)
    ]
    fitted = cross_fitted(features, targets, folds)
    found = []
    for group, own, value in zip(groups, means, fitted, strict=True):
        ends = np.cumsum([len(one.turns) for one in group])[:-1]
        parts = np.split(value[:, 0], ends) if group else []
        found.append([np.clip(mean + part, 0.0, 1.0) for mean, part in zip(own, parts, strict=True)])
    return found


def cross_fitted(features: Sequence[Floats], targets: Sequence[Floats], folds: np.ndarray) -> list[Floats]:
    """What ridge regression on the groups of other folds predicts of each group's rows: the (N, F) features and (N, M)
    targets of each group, and its fold. The penalty of each target is the one that predicts best between these other
    folds."""
    numbers = np.unique(folds)
    moments = {fold: _Moments.of(features, targets, np.flatnonzero(folds == fold)) for fold in numbers}
    coefficients = {}
    for fold in numbers:
        # added up, never subtracted from the whole: what rounding left of this fold's own rows would be fitted, too
        rest = [one for one in numbers if one != fold]
        betas = _ridge([moments[one] for one in rest])
        errors = np.zeros((len(PENALTIES), targets[0].shape[1]))
        for left_out in rest if len(rest) > 1 else []:
            between = _ridge([moments[one] for one in rest if one != left_out])
            errors += np.array([moments[left_out].squared_error(beta) for beta in between])
        best = errors.argmin(axis=0) if len(rest) > 1 else np.full(errors.shape[1], len(PENALTIES) - 1)
        coefficients[fold] = betas[best, :, np.arange(len(best))].T
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


@dataclass(frozen=True)
class _Moments:
    """Sums of products over rows: of 1 and the features (F + 1, F + 1), of these and the targets (F + 1, M), and of
    each target with itself (M,)."""

    xx: Floats
    xy: Floats
    yy: Floats

    @classmethod
    def of(cls, features: Sequence[Floats], targets: Sequence[Floats], groups: np.ndarray) -> _Moments:
        rows = _with_one(np.concatenate([features[at] for at in groups]))
        wanted = np.concatenate([targets[at] for at in groups])
        return cls(rows.T @ rows, rows.T @ wanted, (wanted**2).sum(axis=0))

    def squared_error(self, beta: Floats) -> Floats:
        """(M,) Σ (y − ŷ)² over the rows, with the (F + 1, M) coefficients."""
        return np.asarray(self.yy - 2 * (beta * self.xy).sum(axis=0) + (beta * (self.xx @ beta)).sum(axis=0))


def _ridge(parts: Sequence[_Moments]) -> Floats:
    """(P, F + 1, M) the intercept and the coefficients for each penalty. A feature that does not vary has none."""
    xx = np.sum([one.xx for one in parts], axis=0)
    xy = np.sum([one.xy for one in parts], axis=0)
    beta = np.zeros((len(PENALTIES), *xy.shape))
    count = xx[0, 0]
    if count == 0:
        return beta
    mean, mean_y = xx[0] / count, xy[0] / count
    centred = xx / count - np.outer(mean, mean)
    with_y = xy / count - np.outer(mean, mean_y)
    scale = np.sqrt(np.clip(np.diag(centred), 0.0, None))
    kept = np.flatnonzero(scale > 1e-6 * (1.0 + np.abs(mean)))  # never the 1 itself
    if kept.size:
        divide = scale[kept]
        values, vectors = np.linalg.eigh(centred[np.ix_(kept, kept)] / np.outer(divide, divide))
        turned = vectors.T @ (with_y[kept] / divide[:, None])
        for row, penalty in enumerate(PENALTIES):
            shrunk = turned / (np.clip(values, 0.0, None) + penalty)[:, None]
            beta[row, kept] = (vectors @ shrunk) / divide[:, None]
    beta[:, 0] = mean_y - np.einsum("f,pfm->pm", mean[1:], beta[:, 1:])
    return beta


__all__ = ["cross_fitted", "cross_fitted_values"]
