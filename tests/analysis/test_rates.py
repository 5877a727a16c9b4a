"""Bounds of rates: exact where they are known, valid and monotone everywhere."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from cm2_agent.analysis.rates import ALPHA, excess, least_excess, lower, trials_needed, upper
from tests.fuzzing import examples

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n)))


def test_the_numbers_of_trials_are_those_of_the_method() -> None:
    """0 of n hits bound a rate by 1 - alpha^(1/n)."""
    assert upper(0, 149) == pytest.approx(1 - 0.05 ** (1 / 149))
    assert (trials_needed(0.02), trials_needed(0.02, families=15)) == (149, 283)
    assert excess(0, 0, 149) <= 0.02 < excess(0, 0, 148)
    assert excess(0, 0, 283, ALPHA / 15) <= 0.02 < excess(0, 0, 282, ALPHA / 15)
    assert lower(29, 29) >= 0.9 > lower(28, 28)


def test_without_a_trial_nothing_is_known() -> None:
    assert (upper(0, 0), lower(0, 0), excess(0, 0, 0), least_excess(0, 0, 0)) == (1.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(("hits", "n", "alpha"), [(-1, 5, 0.05), (6, 5, 0.05), (1, 5, 0.0), (1, 5, 1.0)])
def test_impossible_counts_are_refused(hits: int, n: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="expected 0 ≤ hits ≤ n"):
        upper(hits, n, alpha)


@settings(max_examples=examples(100))
@given(COUNTS)
def test_bounds_enclose_and_are_exact(counts: tuple[int, int, int]) -> None:
    hits, _, n = counts
    low, high = lower(hits, n), upper(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    if hits < n:
        assert math.isclose(binom.cdf(hits, n, high), ALPHA, rel_tol=1e-6)
        assert upper(hits + 1, n) > high
    if hits:
        assert math.isclose(binom.sf(hits - 1, n, low), ALPHA, rel_tol=1e-6)
    assert upper(hits, n, ALPHA / 15) >= high


@settings(max_examples=examples(100))
@given(COUNTS)
def test_what_is_subtracted_is_never_too_much(counts: tuple[int, int, int]) -> None:
    hits, benign, n = counts
    assert max(0.0, (hits - benign) / n) <= excess(hits, benign, n) <= excess(hits, 0, n) <= 1
    assert least_excess(hits, benign, n) <= max(0.0, (hits - benign) / n) + 1e-12
    if benign < n:
        assert excess(hits, benign + 1, n) <= excess(hits, benign, n)


@pytest.mark.parametrize(("n", "rate"), [(20, 0.02), (60, 0.1), (149, 0.02), (149, 0.5)])
def test_the_bound_covers_the_rate_as_often_as_it_says(n: int, rate: float) -> None:
    """By enumeration: the chance that the bound falls below the true rate is at most alpha."""
    wrong = sum(binom.pmf(hits, n, rate) for hits in range(n + 1) if upper(hits, n) < rate)
    assert wrong <= ALPHA + 1e-9
