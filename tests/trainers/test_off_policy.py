"""The figures of docs/method.md §6, on numbers small enough to work out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.trainers.off_policy import mean_ratio, measure, truncated_weights


def test_weights_are_ratios_up_to_the_cap() -> None:
    prox, mu = np.log([0.5, 0.1, 0.9]), np.log([0.25, 0.2, 0.1])
    assert truncated_weights(prox, mu, 2.5) == pytest.approx([2.0, 0.5, 2.5])
    assert truncated_weights(np.array([0.0]), np.array([-1e6]), 2.0) == [2.0]


def test_the_mean_ratio_is_geometric_and_knows_no_length() -> None:
    prox, mu = np.log([0.4, 0.1]), np.log([0.1, 0.1])
    assert mean_ratio(prox, mu) == pytest.approx(2.0)
    assert mean_ratio(np.tile(prox, 50), np.tile(mu, 50)) == pytest.approx(2.0)


def test_figures_by_hand() -> None:
    ratio = np.array([4.0, 1.0, 1.0, 0.5])
    mu = np.full(4, -1.0)
    found = measure(mu + np.log(ratio), mu, np.array([1.0, 1.0, -1.0, -2.0]), np.array([0, 0, 1, 1]), max_weight=2.0)
    assert (found.tokens, found.rollouts) == (4, 2)
    assert (found.ratio_min, found.ratio_max) == pytest.approx((0.5, 4.0))
    assert found.ratio_mean == pytest.approx(6.5 / 4)
    assert found.kl_per_token == pytest.approx((3 - math.log(4) + 0.5 - 1 + math.log(2)) / 4)
    assert found.kl_per_rollout == pytest.approx(2 * found.kl_per_token)
    assert found.ess_token == pytest.approx(6.5**2 / (4 * (16 + 1 + 1 + 0.25)))
    assert found.ess_sequence == pytest.approx(4.5**2 / (2 * (16 + 0.25)))
    assert found.truncated_tokens == 0.25
    assert found.truncated_positive == pytest.approx(2 / 5)  # of 4·1 + 1·1, 2·1 is cut off
    assert found.truncated_negative == 0.0


def test_on_policy_nothing_is_lost() -> None:
    mu = np.log([0.1, 0.7, 0.3])
    found = measure(mu, mu, np.array([1.0, 0.0, -1.0]), np.array([5, 5, 9]), max_weight=2.0)
    assert (found.ess_sequence, found.ess_token, found.kl_per_token, found.truncated_tokens) == (1, 1, 0, 0)


def test_no_tokens_and_uneven_arrays_are_refused() -> None:
    for two, one in ((0, 0), (2, 1)):
        with pytest.raises(ValueError, match="the same number, at least one"):
            measure(np.zeros(two), np.zeros(two), np.zeros(one), np.zeros(two, dtype=np.int64), max_weight=2.0)


tokens = st.lists(
    st.tuples(st.floats(-20, -1e-3), st.floats(-20, -1e-3), st.floats(-2, 2), st.integers(0, 3)),
    min_size=1,
    max_size=30,
)


@given(tokens, st.floats(1, 4))
def test_shares_are_shares_and_kl_is_never_negative(
    listed: list[tuple[float, float, float, int]], max_weight: float
) -> None:
    prox, mu, advantages, rollout = (np.array(column) for column in zip(*listed, strict=True))
    found = measure(prox, mu, advantages, rollout, max_weight=max_weight)
    for share in (
        found.ess_sequence,
        found.ess_token,
        found.truncated_tokens,
        found.truncated_positive,
        found.truncated_negative,
    ):
        assert 0 <= share <= 1 + 1e-12
    assert found.kl_per_token >= -1e-12
    assert found.ratio_min <= found.ratio_mean <= found.ratio_max * (1 + 1e-12)
