"""How far the stored tokens are from the policy that is to learn from them: weights, figures and limits of
docs/method.md §6, in plain arithmetic.

Throughout, one array an object: log μ (what the sampler recorded), log π_prox (the policy when training loads the
batch) and A, each (N,) over model tokens, and `rollout`, (N,) the index of each token's rollout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .rows import Floats, Row

T = TypeVar("T")

ROWS = 64
"""Rows, evenly spaced, on which a policy is measured after training."""


def some(values: Sequence[T]) -> Sequence[T]:
    """At most ROWS of them, evenly spaced."""
    return values[:: -(-len(values) // ROWS)] if values else values


def truncated_weights(prox: Floats, mu: Floats, max_weight: float) -> Floats:
    """w = min(c, π_prox/μ) a token (docs/method.md §6) with c = `max_weight`; no gradient ever passes through it."""
    return np.minimum(max_weight, np.exp(np.minimum(prox - mu, 50.0)))


def mean_ratio(prox: Floats, mu: Floats) -> float:
    """The geometric mean of π_prox/μ over a rollout's tokens: 1 on policy, whatever the length."""
    return float(np.exp(np.clip(np.mean(prox - mu), -50.0, 50.0)))


@dataclass(frozen=True, kw_only=True)
class OffPolicy:
    """What reuse of stored rollouts costs.

    `ratio_*` are π_prox/μ a token; `kl_per_token` is KL(μ‖π_prox) in nats, estimated without bias and never negative
    (mean of r − 1 − log r), and `kl_per_rollout` times the mean number of trained tokens. `ess_sequence` is the
    effective share of rollouts under whole-sequence weights, which dies with length; `ess_token` that of tokens under
    token weights, which hardly ever fires: each in (0, 1] and under its own name. `truncated_positive` is the share of
    Σ r·|A| that `max_weight` removes from tokens with A > 0, `truncated_negative` with A < 0; `truncated_tokens` the
    share of tokens that it touches.
    """

    tokens: int
    rollouts: int
    ratio_mean: float
    ratio_min: float
    ratio_max: float
    kl_per_token: float
    kl_per_rollout: float
    ess_sequence: float
    ess_token: float
    truncated_tokens: float
    truncated_positive: float
    truncated_negative: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def measure(
    prox: Floats, mu: Floats, advantages: Floats, rollout: NDArray[np.int64], *, max_weight: float
) -> OffPolicy:
    """The figures of a set of tokens, at least one. Raises ValueError on an empty set or arrays of different length."""
    if not len(mu) or not len(prox) == len(mu) == len(advantages) == len(rollout):
        raise ValueError(
            f"{len(prox)}, {len(mu)}, {len(advantages)} and {len(rollout)} values; expected the same number, at"
            " least one"
        )
    log_ratio = np.clip(prox - mu, -50.0, 50.0)
    ratio = np.exp(log_ratio)
    _, index = np.unique(rollout, return_inverse=True)
    rollouts = int(index.max()) + 1
    kl = float(np.mean(ratio - 1.0 - log_ratio))
    excess, weight = np.maximum(ratio - max_weight, 0.0) * np.abs(advantages), ratio * np.abs(advantages)
    return OffPolicy(
        tokens=len(mu),
        rollouts=rollouts,
        ratio_mean=float(ratio.mean()),
        ratio_min=float(ratio.min()),
        ratio_max=float(ratio.max()),
        kl_per_token=kl,
        kl_per_rollout=kl * len(mu) / rollouts,
        ess_sequence=_effective(np.bincount(index, weights=log_ratio).astype(np.float64)),
        ess_token=_effective(log_ratio),
        truncated_tokens=float(np.mean(ratio > max_weight)),
        truncated_positive=_share(excess, weight, advantages > 0),
        truncated_negative=_share(excess, weight, advantages < 0),
    )


def measure_rollouts(rollouts: Iterable[Sequence[Row]], prox: Mapping[int, Floats], *, max_weight: float) -> OffPolicy:
    """The figures over the rows of rollouts for which `prox` holds log π_prox, by the `id` of the row."""
    rows = [(number, row) for number, one in enumerate(rollouts) for row in one if id(row) in prox]
    return measure(
        np.concatenate([prox[id(row)] for _, row in rows]),
        np.concatenate([row.mu for _, row in rows]),
        np.concatenate([row.token_advantages for _, row in rows]),
        np.concatenate([np.full(row.trained, number) for number, row in rows]),
        max_weight=max_weight,
    )


def rollout_ratio(rows: Sequence[Row], prox: Mapping[int, Floats]) -> float:
    """`mean_ratio` over all rows of one rollout."""
    return mean_ratio(np.concatenate([prox[id(row)] for row in rows]), np.concatenate([row.mu for row in rows]))


def _effective(log_weights: Floats) -> float:
    """(Σ w)² / (n Σ w²), from logarithms."""
    scaled = np.exp(log_weights - log_weights.max())
    return float(scaled.sum() ** 2 / (len(scaled) * (scaled**2).sum()))


def _share(part: Floats, whole: Floats, where: NDArray[np.bool_]) -> float:
    total = float(whole[where].sum())
    return float(part[where].sum()) / total if total > 0 else 0.0
