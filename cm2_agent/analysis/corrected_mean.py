"""A mean of rewards, corrected by people's labels of a part of the traces: prediction-powered inference.

A judge's mean is precise and may be biased; people's mean is right and of few. Together they estimate what people would
have said of all, with an interval that holds whatever the judge is worth (Angelopoulos et al., Prediction-powered
inference, 2023; with the weight of PPI++, arXiv 2311.01453)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from cm2_agent.analysis.bootstrap import Array, Interval, codes, mean_interval

FEW_TRACES, FEW_TASKS = 30, 10
"""With fewer labelled traces, or fewer tasks among them, an interval does not hold what it promises."""


@dataclass(frozen=True, kw_only=True)
class CorrectedMean:
    """What people would have said on average of all `n` labelled and `unlabelled` traces.

    `estimate` is ȳ_n + λ(f̄_N − f̄_n), `weight` the λ in [0, 1], `se` its standard error and `interval` of 95 %, by
    Student's t over the labelled tasks, cut to [0, 1]. `people` is ȳ_n, `judged` f̄_n, the judge's mean over the same
    traces, and `judged_unlabelled` f̄_N, None where all traces are labelled. `few`: the labels are too few for the
    interval to be trusted. `se` and `interval` are None where they are of one task."""

    n: int
    tasks: int
    unlabelled: int
    estimate: float
    se: float | None
    interval: Interval | None
    weight: float
    people: float
    judged: float
    judged_unlabelled: float | None
    few: bool


def corrected_mean(
    people: Sequence[float],
    judge: Sequence[float],
    unlabelled: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    unlabelled_clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
) -> CorrectedMean:
    """The mean of what people say (each in [0, 1], as rewards are), helped by what a judge says of the same traces and
    of `unlabelled` others. The labelled traces must be a random part of all.

    λ = Cov(y, f) / ((1 + n/N) · Var f), clipped to [0, 1]; Cov over the labelled, Var f over all. Where each trace is
    its own cluster SE² = Var(y − λf)/n + λ²·Var f/N, f of the second term unlabelled; else the same with the sums of
    clusters (tasks), a task's labelled and unlabelled traces together. Raises ValueError where nobody labelled
    anything, and on sequences of different lengths.

    >>> found = corrected_mean([1.0, 0.0, 1.0, 0.0], [1.0, 0.2, 0.8, 0.0], [1.0, 0.6, 0.4, 0.8])
    >>> round(found.weight, 4), round(found.estimate, 4), round(found.se, 4)
    (0.9722, 0.6944, 0.1517)
    """
    y, f, other = (np.asarray(values, dtype=float) for values in (people, judge, unlabelled))
    n, more = len(y), len(other)
    names = [("alone", place) for place in range(n)] if clusters is None else list(clusters)
    others = [("other", place) for place in range(more)] if unlabelled_clusters is None else list(unlabelled_clusters)
    if not n == len(f) == len(names) or more != len(others):
        raise ValueError(
            f"{n} labels, {len(f)} rewards and {len(names)} clusters, {more} unlabelled rewards and {len(others)}"
            " clusters; expected as many of each"
        )
    if not n:
        raise ValueError("no labels; expected at least one")
    weight = _weight(y, f, other)
    rest = y - weight * f
    estimate = float(rest.mean() + (weight * other.mean() if more else 0.0))
    code = codes([*names, *others])
    tasks = len(set(names))
    se = _standard_error(rest, weight * other, code[:n], code[n:])
    interval: Interval | None = None
    if se is not None and y.min() == y.max() and float(y[0]) in (0.0, 1.0):
        interval = mean_interval(y.tolist(), names, level=level)[1]  # what is all the same has no variance to speak of
    elif se is not None:
        from scipy.stats import t  # half a second to import, and few reports correct anything

        half = float(t.ppf((1 + level) / 2, tasks - 1)) * se
        interval = (min(1.0, max(0.0, estimate - half)), min(1.0, max(0.0, estimate + half)))
    return CorrectedMean(
        n=n,
        tasks=tasks,
        unlabelled=more,
        estimate=estimate,
        se=se,
        interval=interval,
        weight=weight,
        people=float(y.mean()),
        judged=float(f.mean()),
        judged_unlabelled=float(other.mean()) if more else None,
        few=n < FEW_TRACES or tasks < FEW_TASKS,
    )


def _weight(y: Array, f: Array, other: Array) -> float:
    n, more = len(y), len(other)
    if n < 2 or not more:
        return 0.0
    spread = float(np.var(np.concatenate([f, other]), ddof=1))
    if spread <= 0:
        return 0.0
    return float(np.clip(np.cov(y, f)[0, 1] / ((1 + n / more) * spread), 0.0, 1.0))


def _standard_error(rest: Array, other: Array, labelled: Array, unlabelled: Array) -> float | None:
    """From the sums of centred values by cluster, each part's variance corrected for the number of its clusters."""
    if len(set(labelled.tolist())) < 2:
        return None
    size = int(max(labelled.max(), unlabelled.max(initial=0))) + 1
    first = np.bincount(labelled, rest - rest.mean(), size) / len(rest)
    square = _corrected(first, labelled)
    if len(other):
        second = np.bincount(unlabelled, other - other.mean(), size) / len(other)
        square += _corrected(second, unlabelled) + 2 * float(first @ second)
    return math.sqrt(max(0.0, square))


def _corrected(sums: Array, code: Array) -> float:
    tasks = len(set(code.tolist()))
    return float(sums @ sums) * (tasks / (tasks - 1) if tasks > 1 else 1.0)


__all__ = ["FEW_TASKS", "FEW_TRACES", "CorrectedMean", "corrected_mean"]
