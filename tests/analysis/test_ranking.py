"""Figures against their definitions: every formula beside a brute-force count, and the bootstrap beside plain
resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.analysis.bootstrap import bootstrap, mean_interval, wilson
from cm2_agent.analysis.ranking import agreement, auc, auc_within, differences, kendall, spearman

ROLLOUT = st.tuples(
    st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0.0, 1.0]), st.sampled_from(["a", "b", "c", None])
)


def counted(rows: Sequence[tuple[float, float, object]], *, within: bool) -> tuple[float, int]:
    """Wins (ties ½) and pairs, one pair at a time."""
    wins, pairs = 0.0, 0
    for (r1, o1, g1), (r2, o2, g2) in combinations(rows, 2):
        if o1 == o2 or (within and (g1 is None or g1 != g2)):
            continue
        pairs += 1
        better, worse = (r1, r2) if o1 > o2 else (r2, r1)
        wins += 1.0 if better > worse else 0.5 if better == worse else 0.0
    return wins, pairs


@given(st.lists(ROLLOUT, max_size=14))
def test_figures_are_the_counts(rows: list[tuple[float, float, str | None]]) -> None:
    rewards, outcomes, groups = [r for r, _, _ in rows], [o for _, o, _ in rows], [g for _, _, g in rows]
    found = agreement(rewards, outcomes, groups, draws=10)
    for name, within in (("auc", False), ("auc_within", True)):
        wins, pairs = counted(rows, within=within)
        value = getattr(found, name)
        assert (value is None) == (pairs == 0)
        assert value is None or value == pytest.approx(wins / pairs)
    assert found.pairs == counted(rows, within=True)[1]
    assert found.n == len(rows)
    assert auc(rewards, outcomes) == pytest.approx(found.auc)
    assert auc_within(rewards, outcomes, groups) == pytest.approx(found.auc_within)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(0, 2)), min_size=2, max_size=12))
def test_kendall_is_the_pairs_beside_what_the_ties_leave(rows: list[tuple[float, int]]) -> None:
    """τ-b = (C − D) / √((C + D + ties of rewards alone) · (C + D + ties of outcomes alone))."""
    concordant = discordant = reward_ties = outcome_ties = 0
    for (r1, o1), (r2, o2) in combinations(rows, 2):
        product = (r1 > r2) - (r1 < r2), (o1 > o2) - (o1 < o2)
        concordant += product[0] * product[1] > 0
        discordant += product[0] * product[1] < 0
        reward_ties += not product[0] and bool(product[1])
        outcome_ties += bool(product[0]) and not product[1]
    apart = concordant + discordant
    found = kendall([r for r, _ in rows], [float(o) for _, o in rows])
    if not (apart + reward_ties) * (apart + outcome_ties):
        assert found is None
    else:
        expected = (concordant - discordant) / math.sqrt((apart + reward_ties) * (apart + outcome_ties))
        assert found == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(ROLLOUT, st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=14))
def test_differences_of_two_rewards_are_those_of_their_figures(
    rows: list[tuple[tuple[float, float, str | None], float]],
) -> None:
    rewards, outcomes, groups = [list(column) for column in zip(*(row for row, _ in rows), strict=True)]
    others = [other for _, other in rows]
    clusters = [f"{group}" for group in groups]
    found = differences(rewards, others, outcomes, groups, clusters, draws=20)
    for name in ("auc", "auc_within", "kendall"):
        of, that = (getattr(agreement(values, outcomes, groups, draws=1), name) for values in (rewards, others))
        assert found[name][0] == (None if of is None or that is None else pytest.approx(of - that))


def test_a_difference_from_itself_is_sure() -> None:
    rows = [(0.1, 0.0, "a"), (0.9, 1.0, "a"), (0.5, 0.0, "b"), (0.4, 1.0, "b")]
    rewards, outcomes, groups = [r for r, _, _ in rows], [o for _, o, _ in rows], [g for _, _, g in rows]
    assert differences(rewards, rewards, outcomes, groups, groups)["auc_within"] == (0.0, (0.0, 0.0))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=30))
def test_spearman_is_scipys(pairs: list[tuple[float, float]]) -> None:
    from scipy.stats import spearmanr

    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    found = spearman(left, right)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(left, right)[0], abs=1e-12)


@given(st.lists(ROLLOUT, min_size=2, max_size=14), st.sampled_from([2.0, 0.1]), st.floats(-3, 3))
def test_only_the_order_counts(rows: list[tuple[float, float, str | None]], scale: float, shift: float) -> None:
    rewards, outcomes, groups = [r for r, _, _ in rows], [o for _, o, _ in rows], [g for _, _, g in rows]
    plain = agreement(rewards, outcomes, groups, draws=20)
    assert agreement([reward * scale + shift for reward in rewards], outcomes, groups, draws=20) == plain
    turned = agreement([-reward for reward in rewards], outcomes, groups, draws=20)
    if plain.auc is not None and turned.auc is not None:
        assert turned.auc == pytest.approx(1 - plain.auc)
    if plain.auc_within is not None and turned.auc_within is not None:
        assert turned.auc_within == pytest.approx(1 - plain.auc_within)


def test_intervals_resample_whole_tasks() -> None:
    """The matrix form of the bootstrap gives what drawing tasks and counting pairs afresh gives, draw for draw."""
    random = np.random.default_rng(3)
    rows = [(float(random.integers(0, 4)), float(random.integers(0, 2)), task) for task in "abcdefgh" for _ in range(4)]
    rewards, outcomes, tasks = [r for r, _, _ in rows], [o for _, o, _ in rows], [t for _, _, t in rows]
    names = sorted(set(tasks))
    totals, withins = [], []
    for weights in np.random.default_rng(7).multinomial(len(names), np.full(len(names), 1 / len(names)), size=200):
        drawn = [
            (reward, outcome, f"{task}{copy}")
            for task, times in zip(names, weights, strict=True)
            for copy in range(times)
            for reward, outcome, mine in rows
            if mine == task
        ]
        wins, pairs = counted(drawn, within=False)
        totals.append(wins / pairs)
        wins, pairs = counted(drawn, within=True)
        withins.append(wins / pairs)
    found = agreement(rewards, outcomes, tasks, draws=200, seed=7)
    assert found.ci["auc"] == pytest.approx(tuple(np.quantile(totals, [0.025, 0.975])))
    assert found.ci["auc_within"] == pytest.approx(tuple(np.quantile(withins, [0.025, 0.975])))
    assert agreement(rewards, outcomes, tasks, draws=200, seed=7) == found
    assert agreement(rewards, outcomes, tasks, draws=200, seed=8) != found


def test_tasks_hold_their_groups() -> None:
    """Clusters may be coarser than groups: two samplings of one task are two groups and one cluster."""
    rewards, outcomes = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    found = agreement(rewards, outcomes, ["a1", "a1", "a2", "a2", "b", "b"], ["a", "a", "a", "a", "b", "b"], draws=300)
    assert found.auc_within == pytest.approx(2 / 3)
    assert found.ci["auc_within"] == pytest.approx((0.5, 1.0))


def test_what_is_undetermined_is_none() -> None:
    found = agreement([0.5, 0.7], [1.0, 1.0], ["a", "a"])
    assert (found.auc, found.auc_within, found.spearman, found.pairs) == (None, None, None, 0)
    assert set(found.ci.values()) == {None}
    assert agreement([], [], []).auc is None
    assert bootstrap(lambda weights: None if weights[0] else 1.0, 2) is None


def test_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="NaN"):
        auc([math.nan, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="as many"):
        agreement([1.0], [1.0], [])
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="not finite"):
        mean_interval([1.0, math.inf])
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


@given(st.integers(1, 400), st.data())
def test_wilson_solves_its_equation(n: int, data: st.DataObject) -> None:
    """Each bound p obeys |k/n − p| = z sqrt(p(1 − p)/n): the score test at that p is just significant."""
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    z = 1.959963984540054
    for bound, at_edge in ((low, successes == 0), (high, successes == n)):
        if not at_edge:
            assert abs(successes / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


def test_mean_interval_widens_with_clusters() -> None:
    """40 tasks of 5 equal rollouts carry the information of 40, not of 200."""
    values = [float(task % 2) for task in range(40) for _ in range(5)]
    mean, (low, high) = mean_interval(values, [task for task in range(40) for _ in range(5)], draws=4000)
    _, (naive_low, naive_high) = mean_interval(values)
    assert mean == 0.5
    assert (naive_low, naive_high) == pytest.approx(wilson(100, 200))
    assert low < naive_low
    assert high > naive_high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 40), rel=0.1)


def test_mean_interval_of_scores_is_near_the_normal_one() -> None:
    values = np.random.default_rng(0).uniform(size=300)
    mean, (low, high) = mean_interval(list(values), draws=4000)
    half = 1.96 * values.std() / math.sqrt(300)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.004)
