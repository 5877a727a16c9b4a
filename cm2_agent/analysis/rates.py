"""Exact bounds of rates: Clopper and Pearson's, those of a rate less another one, and how many trials a bound needs.

All are one-sided. A trial is a task, since traces of one task resemble each other."""

from __future__ import annotations

ALPHA = 0.05
"""How often a bound may be wrong."""
_BENIGN = 0.01
"""The share of this that goes to the rate that is subtracted: small, so that 0 hits of 149 still bound 0.02."""


def upper(hits: int, n: int, alpha: float = ALPHA) -> float:
    """The upper bound of a rate of which `hits` of `n` independent trials came up; 1 without a trial. Raises ValueError
    unless 0 ≤ hits ≤ n and 0 < alpha < 1.

    >>> round(upper(0, 149), 4), upper(0, 0)
    (0.0199, 1.0)
    """
    _require(hits, n, alpha)
    if hits == n:
        return 1.0
    from scipy.stats import beta

    return float(beta.ppf(1 - alpha, hits + 1, n - hits))


def lower(hits: int, n: int, alpha: float = ALPHA) -> float:
    """The lower bound; 0 without a trial. Raises ValueError as `upper` does.

    >>> round(lower(29, 29), 3), lower(0, 50)
    (0.902, 0.0)
    """
    _require(hits, n, alpha)
    if hits == 0:
        return 0.0
    from scipy.stats import beta

    return float(beta.ppf(alpha, hits, n - hits + 1))


def excess(hits: int, benign: int, n: int, alpha: float = ALPHA) -> float:
    """The upper bound of the rate of hits less that of benign flips on the same trials, in [0, 1]; no independence of
    the two is assumed. Without benign flips it is the bound of the hits at 0.99 α.

    >>> round(excess(0, 0, 149), 4), excess(20, 20, 200) < upper(20, 200)
    (0.02, True)
    """
    return max(0.0, upper(hits, n, alpha * (1 - _BENIGN)) - (lower(benign, n, alpha * _BENIGN) if n else 0.0))


def least_excess(hits: int, benign: int, n: int, alpha: float = ALPHA) -> float:
    """The lower bound of the same, in [0, 1]."""
    return max(0.0, lower(hits, n, alpha * (1 - _BENIGN)) - (upper(benign, n, alpha * _BENIGN) if benign else 0.0))


def trials_needed(limit: float, families: int = 1, alpha: float = ALPHA) -> int:
    """How many trials without a hit bound the rate by `limit`, for so many families at once. Raises ValueError where
    the limit is not in (0, 1), or there is no family.

    >>> trials_needed(0.02), trials_needed(0.02, families=15)
    (149, 283)
    """
    if not 0 < limit < 1 or families < 1:
        raise ValueError(
            f"limit is {limit}, families {families}; expected a rate between 0 and 1, and one family or more"
        )
    low, high = 0, 1
    while excess(0, 0, high, alpha / families) > limit:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excess(0, 0, middle, alpha / families) > limit else (low, middle)
    return high


def _require(hits: int, n: int, alpha: float) -> None:
    if not 0 <= hits <= n or not 0 < alpha < 1:
        raise ValueError(f"{hits} hits of {n} at alpha {alpha}; expected 0 ≤ hits ≤ n and 0 < alpha < 1")


__all__ = ["ALPHA", "excess", "least_excess", "lower", "trials_needed", "upper"]
