"""The sign-flip test: whether paired differences are above 0 by more than chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXACT = 16
"""Up to so many differences that are not 0, all sign patterns are counted."""
DRAWS = 100_000
"""Sign patterns that are drawn where there are more."""
ENOUGH = 200
"""As many of them that reach the observed mean are enough: p is known well, and no more are drawn."""
_PORTION = 4_000_000  # numbers in memory at once


def sign_flip(differences: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> float:
    """The one-sided p-value of paired differences: how often their mean would be as large if each could as well have
    had the other sign (Fisher 1935, §21).

    Exact at every size where each difference is symmetric about 0, as between two draws of one policy: no normal
    distribution is assumed. With more than 16 differences that are not 0 sign patterns are drawn until 200 reach the
    observed mean (p = 200 over those drawn; Besag & Clifford 1991), or all are, the observed one counted among them
    (Phipson & Smyth 2010): both keep the test valid.

    Args:
        differences: one a pair, at least one, finite.
        draws: sign patterns that are drawn at most; p is at least 1/(draws + 1) then.
        seed: of the draws.

    Raises:
        ValueError: there is no difference, or one is not finite.

    >>> sign_flip([0.5, 0.25, 0.25, 0.5])
    0.0625
    >>> sign_flip([0.0, 0.0])
    1.0
    """
    value = np.asarray(differences, dtype=float)
    if not len(value) or not np.isfinite(value).all():
        raise ValueError(f"{len(value)} differences, not all of them finite numbers; expected one or more that are")
    value = value[value != 0]
    if not len(value):
        return 1.0
    value = value / np.abs(value).max()
    observed = value.sum() - 1e-12 * len(value)  # sums of the same numbers in another order are not exact
    if len(value) <= EXACT:
        patterns = (np.arange(2 ** len(value))[:, None] >> np.arange(len(value))) & 1
        return float(np.mean((1 - 2 * patterns) @ value >= observed))
    rng = np.random.default_rng(seed)
    drawn = reached = 0
    while drawn < draws:
        count = min(draws - drawn, max(256, drawn), max(1, _PORTION // len(value)))
        flips = 1 - 2 * rng.integers(0, 2, size=(count, len(value)), dtype=np.int8)
        counted = reached + np.cumsum(flips @ value >= observed)
        if counted[-1] >= ENOUGH:
            return ENOUGH / (drawn + int(np.searchsorted(counted, ENOUGH)) + 1)
        drawn, reached = drawn + count, int(counted[-1])
    return (1 + reached) / (1 + draws)


__all__ = ["DRAWS", "sign_flip"]
