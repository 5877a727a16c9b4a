"""Means corrected by people's labels: numbers worked by hand, and how often the interval covers in simulated stores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.analysis.bootstrap import Array
from cm2_agent.analysis.corrected_mean import corrected_mean


def test_the_numbers_worked_by_hand() -> None:
    """y = 1 0 1 0, f = 1 .2 .8 0, unlabelled f = 1 .6 .4 .8.

    Cov(y, f) = .8/3; all eight f have mean .6 and Var .96/7; n/N = 1: λ = (.8/3) / (2 · .96/7) = 35/36.
    θ = .5 + λ·(.7 − .5). y − λf = 1/36, −7/36, 8/36, 0 with Var 113/3888; the unlabelled f have Var .2/3."""
    found = corrected_mean([1, 0, 1, 0], [1, 0.2, 0.8, 0], [1, 0.6, 0.4, 0.8])
    weight = 35 / 36
    assert found.weight == pytest.approx(weight)
    assert found.estimate == pytest.approx(0.5 + weight * 0.2)
    assert found.se == pytest.approx((113 / 3888 / 4 + weight**2 * (0.2 / 3) / 4) ** 0.5)
    assert (found.n, found.unlabelled, found.people, found.judged) == (4, 4, 0.5, 0.5)
    assert found.judged_unlabelled == pytest.approx(0.7)
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(found.estimate - 3.182446 * (found.se or 0), rel=1e-6)  # t of 3 degrees
    assert found.interval[1] == 1.0
    assert found.few


def test_the_numbers_by_task_worked_by_hand() -> None:
    """Two tasks, a labelled and an unlabelled trace each. f is always 1/2, so λ = 0 and what counts are the labels:
    their sums by task are ±1/4, and 2/1 · (2/16) = 1/4 = SE²."""
    found = corrected_mean([1, 0], [0.5, 0.5], [0.5, 0.5], ["a", "b"], ["a", "b"])
    assert (found.estimate, found.se, found.weight, found.tasks) == (0.5, 0.5, 0.0, 2)


def test_a_task_that_is_on_both_sides_counts_once() -> None:
    """Labelled and unlabelled traces of one task are alike, so their errors add up: λ(f̄_N − f̄_n) takes out what the
    tasks have in common, and the standard error is smaller than for as many strangers."""
    random = np.random.default_rng(3)
    level = np.repeat(random.uniform(0, 1, 40), 4)
    judge = level + random.normal(0, 0.02, 160)
    people = judge - 0.1 + random.normal(0, 0.3, 160)
    labelled = np.arange(160) % 4 < 2
    tasks = np.repeat(np.arange(40), 4)
    together = corrected_mean(
        people[labelled].tolist(),
        judge[labelled].tolist(),
        judge[~labelled].tolist(),
        tasks[labelled].tolist(),
        tasks[~labelled].tolist(),
    )
    strangers = corrected_mean(
        people[labelled].tolist(),
        judge[labelled].tolist(),
        judge[~labelled].tolist(),
        tasks[labelled].tolist(),
        (100 + tasks[~labelled]).tolist(),
    )
    assert together.estimate == strangers.estimate
    assert together.se is not None
    assert strangers.se is not None
    assert together.se != pytest.approx(strangers.se)


def draw(random: np.random.Generator, *, noise: float) -> tuple[Array, Array, Array]:
    """People's answers, a judge's rewards (biased by +0.15) and tasks: 60 tasks of 5 traces, success rates by task."""
    tasks = np.repeat(np.arange(60), 5)
    rate = np.repeat(random.beta(2, 2, 60), 5)
    people = (random.uniform(size=300) < rate).astype(float)
    judge = np.clip(np.where(random.uniform(size=300) < noise, 1 - people, people) * 0.7 + 0.25, 0, 1)
    return people, judge, tasks


@pytest.mark.parametrize(("noise", "by_task"), [(0.1, True), (0.5, True), (0.1, False)])
def test_the_interval_covers_the_truth_as_often_as_it_says(noise: float, by_task: bool) -> None:
    """1,000 simulated stores, 100 of 300 traces labelled, whole tasks or traces at random; the truth is 1/2. 95 %
    within three standard errors of 1,000 draws is 92.9 to 97.1 %. The judge's own mean misses it mostly."""
    random = np.random.default_rng(7)
    covered = judge_covers = 0
    errors = []
    for _ in range(1000):
        people, judge, tasks = draw(random, noise=noise)
        chosen = (
            np.isin(tasks, random.choice(60, 20, replace=False))
            if by_task
            else np.isin(np.arange(300), random.choice(300, 100, replace=False))
        )
        found = corrected_mean(
            people[chosen].tolist(),
            judge[chosen].tolist(),
            judge[~chosen].tolist(),
            tasks[chosen].tolist(),
            tasks[~chosen].tolist(),
        )
        assert found.interval is not None
        assert not found.few
        covered += found.interval[0] <= 0.5 <= found.interval[1]
        judge_covers += abs(float(judge.mean()) - 0.5) < 2 * float(judge.std()) / 300**0.5
        errors.append(found.estimate - 0.5)
    assert 0.929 <= covered / 1000 <= 0.971
    assert judge_covers < 500
    assert abs(float(np.mean(errors))) < 4 * float(np.std(errors)) / 1000**0.5


def test_a_good_judge_makes_the_interval_shorter_and_a_bad_one_costs_nothing() -> None:
    random = np.random.default_rng(1)
    people, judge, tasks = draw(random, noise=0.05)
    labelled = tasks < 20
    args = (people[labelled].tolist(), tasks[labelled].tolist(), tasks[~labelled].tolist())
    alone = corrected_mean(args[0], [0.0] * 100, [0.0] * 200, args[1], args[2])
    good = corrected_mean(args[0], judge[labelled].tolist(), judge[~labelled].tolist(), args[1], args[2])
    upside_down = corrected_mean(
        args[0], (1 - judge[labelled]).tolist(), (1 - judge[~labelled]).tolist(), args[1], args[2]
    )
    assert good.se is not None
    assert alone.se is not None
    assert good.se < alone.se
    assert (upside_down.weight, upside_down.estimate) == (0.0, alone.estimate)
    assert upside_down.se == pytest.approx(alone.se)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20),
    st.lists(st.floats(0, 1), max_size=20),
)
def test_every_figure_is_finite(pairs: list[tuple[float, float]], others: list[float]) -> None:
    found = corrected_mean([y for y, _ in pairs], [f for _, f in pairs], others)
    assert 0 <= found.weight <= 1
    assert np.isfinite(found.estimate)
    assert found.se is None or (np.isfinite(found.se) and found.interval is not None)
    if not others:
        assert (found.weight, found.judged_unlabelled) == (0.0, None)
        assert found.estimate == pytest.approx(found.people)


def test_what_is_all_the_same_is_not_sure() -> None:
    found = corrected_mean([1.0] * 12, [1.0] * 12, [1.0] * 5)
    assert (found.estimate, found.se) == (1.0, 0.0)
    assert found.interval is not None
    assert found.interval[0] < 0.8


def test_one_task_has_no_interval_and_nothing_is_refused() -> None:
    found = corrected_mean([1.0, 0.0], [1.0, 1.0], [0.5], ["a", "a"], ["b"])
    assert (found.se, found.interval, found.few) == (None, None, True)
    with pytest.raises(ValueError, match="at least one"):
        corrected_mean([], [], [1.0])
    with pytest.raises(ValueError, match="as many of each"):
        corrected_mean([1.0], [1.0, 0.0], [])
