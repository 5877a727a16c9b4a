"""Intervals of figures that are quotients of sums over tasks, by the studentised bootstrap over tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from .rows import Floats

Bounds: TypeAlias = tuple[float, float]

DRAWS = 1999
LEVEL = 0.95
_AT_ONCE = 2**22
"""Numbers that are drawn at once."""
_FEW = 256
"""Tasks."""
_NOTHING = 1e-12
"""A standard error below this is what rounding leaves of 0."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Σ_q sign_q · Σ_k above_qk / Σ_k below_qk, from the sums of each of K tasks: a mean, or a difference of two."""

    above_QK: Floats
    below_QK: Floats
    signs: tuple[float, ...] = (1.0,)

    @classmethod
    def quotient(cls, above_K: Floats, below_K: Floats) -> Figure:
        return cls(above_QK=above_K[None], below_QK=below_K[None])

    def minus(self, other: Figure) -> Figure:
        return Figure(
            above_QK=np.concatenate([self.above_QK, other.above_QK]),
            below_QK=np.concatenate([self.below_QK, other.below_QK]),
            signs=(*self.signs, *(-sign for sign in other.signs)),
        )

    @property
    def value(self) -> float:
        return float(self.values(np.ones((1, self.above_QK.shape[1])))[0])

    @property
    def error(self) -> float:
        """The cluster-robust standard error, by the delta method."""
        size = self.above_QK.shape[1]
        influence_K = np.zeros(size)
        for above_K, below_K, sign in zip(self.above_QK, self.below_QK, self.signs, strict=True):
            influence_K += sign * (above_K - above_K.sum() / below_K.sum() * below_K) / below_K.sum()
        return float(np.sqrt(size / (size - 1) * (influence_K**2).sum()))

    def values(self, weights_BK: Floats) -> Floats:
        """(B,) the figure where task k counts weights_bk times."""
        quotients_BQ = (weights_BK @ self.above_QK.T) / (weights_BK @ self.below_QK.T)
        return np.asarray(quotients_BQ @ np.array(self.signs))

    def errors(self, weights_BK: Floats) -> Floats:
        """(B,) the same where task k counts weights_bk times, from moments: quick, and less exact near 0."""
        size, columns, factors = weights_BK.shape[1], [], []
        for above_K, below_K, sign in zip(self.above_QK, self.below_QK, self.signs, strict=True):
            whole_B, quotient = weights_BK @ below_K, above_K.sum() / below_K.sum()
            left_K = above_K - quotient * below_K
            columns += [left_K, below_K]  # of which the influence of a task on the quotient is made
            factors += [sign / whole_B, -sign / whole_B * (weights_BK @ left_K) / whole_B]
        columns_MK, factors_MB = np.array(columns), np.array(factors)
        products_MMK = columns_MK[:, None] * columns_MK[None]
        moments_BMM = (weights_BK @ products_MMK.reshape(-1, size).T).reshape(-1, *products_MMK.shape[:2])
        squares_B = np.einsum("mb,bmn,nb->b", factors_MB, moments_BMM, factors_MB)
        return np.asarray(np.sqrt(size / (size - 1) * np.clip(squares_B, 0.0, None)))


def intervals(figures: Sequence[Figure], *, seed: int = 0) -> list[Bounds | None]:
    """The 95 % interval of each figure over the same K tasks; None where there are fewer than two.

    The wider, on each side, of two: the studentised bootstrap over tasks (Davison & Hinkley 1997, §5.2), which follows
    skewness, and θ̂ ± t_{K−1} · s with the cluster-robust standard error s, since few tasks give the bootstrap's tails
    little to be drawn from. The percentile bootstrap is too narrow for both (docs/method.md §6). A figure without a
    standard error, of values that do not differ, has an interval of no width.

    >>> heads, tosses = np.array([5.0, 4.0, 7.0, 4.0]), np.full(4, 10.0)
    >>> [(round(low, 2), round(high, 2)) for low, high in intervals([Figure.quotient(heads, tosses)])]
    [(0.27, 0.73)]
    """
    from scipy.special import stdtrit

    if not figures:
        return []
    size = figures[0].above_QK.shape[1]
    if size < 2:
        return [None] * len(figures)
    values, errors = [one.value for one in figures], [one.error for one in figures]
    drawn: list[list[Floats]] = [[] for _ in figures]
    for weights_BK in resampled(size, seed):
        with np.errstate(divide="ignore", invalid="ignore"):
            for found, one, value in zip(drawn, figures, values, strict=True):
                found.append((one.values(weights_BK) - value) / one.errors(weights_BK))
    half = float(stdtrit(size - 1, (1 + LEVEL) / 2))
    made: list[Bounds | None] = []
    for parts, value, error in zip(drawn, values, errors, strict=True):
        studentised = np.concatenate(parts)
        studentised = studentised[np.isfinite(studentised)]  # a draw of tasks that are alike has no standard error
        if error <= _NOTHING or not len(studentised):
            made.append((value, value))
            continue
        low, high = np.quantile(studentised, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        made.append((value - error * max(float(high), half), value - error * min(float(low), -half)))
    return made


def resampled(size: int, seed: int) -> Iterator[Floats]:
    """(B, K) how often each task is drawn, DRAWS times in all, in parts where that is much."""
    if size <= _FEW:
        yield _whole(size, seed)
        return
    rng, part = np.random.default_rng(seed), max(1, _AT_ONCE // size)
    for start in range(0, DRAWS, part):
        yield _drawn(rng, size, min(part, DRAWS - start))


@lru_cache(maxsize=1)
def _whole(size: int, seed: int) -> Floats:
    """All draws of few tasks, kept for the next evaluation of as many."""
    return _drawn(np.random.default_rng(seed), size, DRAWS)


def _drawn(rng: np.random.Generator, size: int, number: int) -> Floats:
    return rng.multinomial(size, np.full(size, 1 / size), size=number).astype(np.float64)


__all__ = ["Figure", "intervals", "resampled"]
