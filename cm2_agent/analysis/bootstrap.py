"""Means, proportions and their intervals, as reports, rankings and benchmarks need them.

Rollouts of one task resemble each other, so that intervals resample whole *clusters* (tasks), never single rollouts:
the percentile bootstrap of Davison & Hinkley (1997), §2.4 and §3.8, seeded. A figure that the data does not determine
is None, never 0. Every figure over finite numbers is finite, whatever their size."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np

Interval: TypeAlias = "tuple[float, float]"
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

MANY = 2_000
"""With more clusters than this, those that are alike are drawn together."""
_WEIGHTS = 200_000
"""Weights that are drawn at a time, to bound the memory: the stream of random numbers is the same."""
LARGE = 1e150
"""Figures over larger numbers are computed in units of the largest of them, since their sums would overflow."""


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of `n` independent trials (Wilson 1927). Raises ValueError unless 0 ≤
    successes ≤ n, n ≥ 1.

    >>> tuple(round(bound, 3) for bound in wilson(8, 10))
    (0.49, 0.943)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; expected 0 ≤ successes ≤ n and n ≥ 1")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return 0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half)


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, Interval]:
    """The mean and its interval: for independent 0/1 values, and where all are 0 or all are 1, Wilson's; else the
    bootstrap over clusters (each value its own where none are given). Raises ValueError where there is no value, or one
    that is not finite."""
    if not values:
        raise ValueError("no values; expected at least one")
    value = np.asarray(values, dtype=float)
    if not np.isfinite(value).all():
        raise ValueError("a value is not finite; leave out what is NULL first")
    names = list(range(len(value))) if clusters is None else list(clusters)
    if len(names) != len(value):
        raise ValueError(f"{len(value)} values and {len(names)} clusters; expected as many of each")
    code = codes(names)
    size = int(code.max()) + 1
    if size == len(value) and np.isin(value, (0.0, 1.0)).all():
        return float(value.mean()), wilson(int(value.sum()), len(value), level=level)
    if np.all(value == 0.0) or np.all(
        value == 1.0
    ):  # resampling what is all the same would be sure of it: as many trials as clusters
        return float(value[0]), wilson(size if value[0] else 0, size, level=level)
    value, unit = _in_units(value)
    sums, counts = np.bincount(code, value, size), np.bincount(code, minlength=size)
    found = ratio_interval(sums, counts, draws=draws, seed=seed, level=level)
    mean = float(value.mean())
    low, high = found if found is not None else (mean, mean)
    return _in_ones(mean, unit), (_in_ones(low, unit), _in_ones(high, unit))


def mean(values: Sequence[float]) -> float:
    """The mean of finite numbers, the same in whatever order they come. Raises ValueError where there is none.

    >>> mean([0.1, 0.2, 0.6]), mean([1.7e308, 1.7e308])
    (0.3, 1.7e+308)
    """
    if not values:
        raise ValueError("no values; expected at least one")
    value, unit = _in_units(np.asarray(values, dtype=float))
    return _in_ones(math.fsum(value) / len(value), unit)


def ratio_interval(
    sums: Array, counts: Array, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """The interval of Σ sums ⁄ Σ counts, both (clusters,), by `bootstrap`. Of more than `MANY` clusters, those with the
    same sum and count are drawn together, which is the same distribution and far quicker.

    >>> ratio_interval(np.asarray([1.0, 0.0, 2.0]), np.asarray([2, 1, 2]))
    (0.0, 1.0)
    """
    clusters, alike = len(counts), None
    if clusters > MANY:
        pairs, alike = np.unique(np.stack([sums, counts], axis=1), axis=0, return_counts=True)
        sums, counts = pairs[:, 0], pairs[:, 1]
    return bootstrap(
        lambda weights: ratio(weights @ sums, weights @ counts),
        clusters,
        alike=alike,
        draws=draws,
        seed=seed,
        level=level,
    )


def bootstrap(
    figure: Callable[[Array], float | None],
    clusters: int,
    *,
    alike: Array | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """The percentile interval of a figure under resampling of clusters with replacement.

    `figure` gets how often each cluster was drawn, (clusters,); with `alike`, which says how many clusters are alike,
    how often one of each kind was. Draws in which the figure is undetermined (None, or not finite) are left out; where
    that is more than half of them, or there are fewer than two clusters, the data does not carry an interval: None.

    >>> heads = np.asarray([1.0, 0.0, 1.0, 1.0])  # four tasks, one rollout each
    >>> bootstrap(lambda weights: ratio(weights @ heads, weights.sum()), 4)
    (0.25, 1.0)
    """
    if clusters < 2:
        return None
    random = np.random.default_rng(seed)
    shares = (np.ones(clusters) if alike is None else alike) / clusters
    found: list[float] = []
    portion = max(1, _WEIGHTS // len(shares))
    for done in range(0, draws, portion):
        weights = random.multinomial(clusters, shares, size=min(portion, draws - done)).astype(float)  # (draws, kinds)
        found += [value for value in map(figure, weights) if value is not None and math.isfinite(value)]
    if len(found) * 2 <= draws:
        return None
    value, unit = _in_units(np.asarray(found, dtype=float))
    low, high = np.quantile(value, [(1 - level) / 2, (1 + level) / 2])
    return _in_ones(float(low), unit), _in_ones(float(high), unit)


def ratio(part: Any, whole: Any) -> float | None:
    """The quotient, None where the divisor is 0 or the quotient too large to be a number."""
    if not whole:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(part / whole)
    return found if math.isfinite(found) else None


def codes(names: Sequence[Hashable]) -> Array:
    """Each name as the number of its first appearance."""
    seen: dict[Hashable, int] = {}
    return np.asarray([seen.setdefault(name, len(seen)) for name in names], dtype=int)


def _in_units(value: Array) -> tuple[Array, float]:
    """The values in units of the largest where that is so large that sums would overflow, and the unit."""
    unit = float(np.abs(value).max(initial=0.0))
    return (value / unit, unit) if unit > LARGE else (value, 1.0)


def _in_ones(value: float, unit: float) -> float:
    """A mean or a quantile of values in such units as a number: rounding may not carry it beyond the largest."""
    return value if unit == 1.0 else min(1.0, max(-1.0, value)) * unit


__all__ = ["Array", "Interval", "bootstrap", "codes", "mean", "mean_interval", "ratio", "ratio_interval", "wilson"]
