"""A reward as a prediction of success: confusion tables, Matthews' correlation, and the threshold that is best.

A threshold that is chosen on the very dialogues that it is measured on flatters itself. So there are three tables of
one reward: at 1 (nothing chosen), at the best threshold of these dialogues, and *held out*: each task is predicted by
the threshold that is best on all others. Intervals resample whole clusters (tasks), as everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cm2_agent.analysis.bootstrap import Array, Interval, bootstrap, codes, ratio

FOLDS = 50
"""So many folds of clusters at most are held out in turn; up to there each cluster is a fold of its own."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often a prediction of success was right: `tp` and `tn` right ones, `fp` and `fn` wrong ones.

    `threshold`: the least value that predicts success; None where it is another one for each fold, or where success is
    never predicted. `ci` holds 95 % intervals of `accuracy` and `mcc`.

    >>> table = Confusion(tp=6, fp=2, fn=1, tn=3)
    >>> table.n, round(table.accuracy, 3), round(table.mcc, 3)
    (12, 0.75, 0.478)
    """

    tp: int
    fp: int
    fn: int
    tn: int
    threshold: float | None = None
    ci: Mapping[str, Interval | None] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return self.tp + self.fp + self.fn + self.tn

    @property
    def accuracy(self) -> float | None:
        """The share of right predictions in [0, 1]; None of none."""
        return ratio(self.tp + self.tn, self.n)

    @property
    def mcc(self) -> float | None:
        """Matthews' correlation (1975) in [-1, 1]: 0 where the prediction is always the same, None where the outcome
        is."""
        return _mcc(np.asarray([self.tn, self.fn, self.fp, self.tp], dtype=float))


def confusion(
    predicted: Sequence[bool],
    success: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    *,
    threshold: float | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Confusion:
    """Predictions against what happened, one entry a dialogue; each is its own cluster where none are given. Raises
    ValueError on sequences of different lengths."""
    tables = _tables(predicted, success, range(len(success)) if clusters is None else clusters)
    tn, fn, fp, tp = (int(count) for count in tables.sum(axis=0))

    def interval(figure: Callable[[Array], float | None]) -> Interval | None:
        return bootstrap(lambda weights: figure(weights @ tables), len(tables), draws=draws, seed=seed)

    return Confusion(
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
        threshold=threshold if threshold is not None and math.isfinite(threshold) else None,
        ci={"accuracy": interval(_accuracy), "mcc": interval(_mcc)},
    )


def best_threshold(values: Sequence[float], success: Sequence[bool]) -> float | None:
    """The least value that should count as success: of the values at hand the one with the highest MCC, among equals
    with the highest accuracy, among those the highest value. Infinity where never to predict success is best, None
    where the outcome is always the same.

    >>> best_threshold([0.2, 0.5, 0.9, 1.0], [False, False, True, True])
    0.9
    """
    value, good = np.asarray(values, dtype=float), np.asarray(success, dtype=bool)
    if not good.any() or good.all():
        return None
    steps, place = np.unique(value, return_inverse=True)
    hits, misses = (np.bincount(place, kind, len(steps)) for kind in (good, ~good))
    tp = np.append(np.cumsum(hits[::-1])[::-1], 0.0)  # predicted at and above each value, and above all
    fp = np.append(np.cumsum(misses[::-1])[::-1], 0.0)
    positives, negatives = good.sum(), (~good).sum()
    tables = np.stack([negatives - fp, positives - tp, fp, tp], axis=1)
    found = [
        (round(_mcc(table) or 0.0, 12), _accuracy(table) or 0.0, threshold)
        for table, threshold in zip(tables, [*steps.tolist(), math.inf], strict=True)
    ]
    return float(max(found)[2])


def held_out(values: Sequence[float], success: Sequence[bool], clusters: Sequence[Hashable]) -> list[bool] | None:
    """Whether each dialogue is predicted to succeed, by the threshold that is best on the dialogues of all other folds
    of clusters (tasks). Where the outcome is the same in all of those, that is the prediction. None where there are
    fewer than two clusters.

    >>> held_out([0.2, 0.9, 0.3, 1.0], [False, True, False, True], ["a", "a", "b", "b"])
    [False, False, False, True]
    """
    code = codes(clusters)
    if len(code) == 0 or code.max() < 1:
        return None
    value, good = np.asarray(values, dtype=float), np.asarray(success, dtype=bool)
    fold = code % FOLDS
    predicted = np.zeros(len(value), dtype=bool)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        threshold = best_threshold(value[~out].tolist(), good[~out].tolist())
        predicted[out] = good[~out][0] if threshold is None else value[out] >= threshold
    return predicted.tolist()


def mcc_difference(
    left: Sequence[bool],
    right: Sequence[bool],
    success: Sequence[bool],
    clusters: Sequence[Hashable],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float | None, Interval | None]:
    """The MCC of the left predictions less that of the right ones on the same dialogues, with its paired interval: each
    draw resamples the clusters of both alike."""
    both = np.concatenate([_tables(left, success, clusters), _tables(right, success, clusters)], axis=1)

    def figure(table: Array) -> float | None:
        first, second = _mcc(table[:4]), _mcc(table[4:])
        return None if first is None or second is None else first - second

    return figure(both.sum(axis=0)), bootstrap(
        lambda weights: figure(weights @ both), len(both), draws=draws, seed=seed
    )


def _tables(predicted: Sequence[bool], success: Sequence[bool], clusters: Sequence[Hashable]) -> Array:
    """(clusters, 4) counts of (predicted, success): neither, success only, predicted only, both."""
    if not len(predicted) == len(success) == len(clusters):
        raise ValueError(
            f"{len(predicted)} predictions, {len(success)} outcomes, {len(clusters)} clusters; expected as many of each"
        )
    code = codes(clusters)
    counts = np.zeros((int(code.max()) + 1 if len(code) else 0, 4))
    np.add.at(counts, (code, 2 * np.asarray(predicted, dtype=int) + np.asarray(success, dtype=int)), 1.0)
    return counts


def _accuracy(table: Array) -> float | None:
    return ratio(table[0] + table[3], table.sum())


def _mcc(table: Array) -> float | None:
    tn, fn, fp, tp = table
    if not (tp + fn) * (tn + fp):
        return None
    said = (tp + fp) * (tn + fn)
    return 0.0 if not said else float((tp * tn - fp * fn) / math.sqrt(said * (tp + fn) * (tn + fp)))


__all__ = ["Confusion", "best_threshold", "confusion", "held_out", "mcc_difference"]
