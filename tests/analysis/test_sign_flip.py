"""The sign-flip test: exact at every size, one-sided, and the same whatever the unit."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.analysis.sign_flip import sign_flip


def by_hand(differences: list[float]) -> float:
    """Every sign pattern, counted."""
    sums = [
        sum(sign * one for sign, one in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(one >= sum(differences) - 1e-12 for one in sums) / len(sums)


@given(st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=9))
def test_it_counts_every_sign_pattern(differences: list[float]) -> None:
    assert sign_flip(differences) == pytest.approx(by_hand(differences), abs=1e-12)


@given(st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=12), st.sampled_from([1e-9, 0.3, 1e9]))
def test_the_unit_and_the_order_do_not_matter(differences: list[float], unit: float) -> None:
    assert sign_flip([one * unit for one in reversed(differences)]) == sign_flip(differences)


@pytest.mark.parametrize("count", [3, 8, 14])
def test_it_is_valid_at_every_size(count: int) -> None:
    rng = random.Random(count)
    draws = [[rng.choice([-1, 1]) * rng.random() ** 3 for _ in range(count)] for _ in range(600)]
    found = np.array([sign_flip(one) for one in draws])
    for level in (0.5, 0.25, 0.125):
        assert np.mean(found <= level) <= level + 3 * np.sqrt(level * (1 - level) / 600)


def test_drawn_patterns_agree_with_counted_ones() -> None:
    rng = random.Random(3)
    differences = [rng.gauss(0.3, 1.0) for _ in range(16)]
    exact = sign_flip(differences)
    drawn = sign_flip([*differences, 1e-12], draws=40_000)  # one more, which changes nothing and makes it draw
    assert drawn == pytest.approx(exact, rel=0.25)
    assert sign_flip([1.0] * 40, draws=999) == 1 / 1000  # the observed pattern is counted among them
    assert sign_flip([*differences, 1e-12], seed=1) != sign_flip([*differences, 1e-12], seed=2)


def test_patterns_are_drawn_until_enough_reach_the_mean_and_p_stays_valid() -> None:
    rng = np.random.default_rng(4)
    found = np.array([sign_flip(rng.standard_t(3, size=24).tolist(), seed=n) for n in range(400)])
    for level in (0.5, 0.2, 0.05):
        assert abs(np.mean(found <= level) - level) <= 3 * np.sqrt(level * (1 - level) / 400)


def test_it_is_one_sided_and_zeros_say_nothing() -> None:
    assert sign_flip([-1.0] * 10) == 1.0
    assert sign_flip([1.0] * 10) == 2**-10
    assert sign_flip([1.0] * 10 + [0.0] * 50) == 2**-10
    assert sign_flip([0.0] * 5) == 1.0


@pytest.mark.parametrize("wrong", [[], [float("nan")], [1.0, float("inf")]])
def test_what_is_no_number_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="expected one or more"):
        sign_flip(wrong)
