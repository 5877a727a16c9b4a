"""Both estimates, enumerated on the trees; their intervals by hand and by coverage; what is refused."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.trainers.cluster_intervals import Figure, intervals
from cm2_agent.trainers.off_policy_values import WeighedRollout, figures_of, off_policy_values
from tests.bench.bench_off_policy import FIGURES, POLICIES, on_trees
from tests.trainers.other_policies import OtherPolicy, Sample, draw, episodes
from tests.trainers.trees import TREES, Tree

BLOCKS = tuple(replace(tree, block=True) for tree in TREES)


def weighed(
    reward: float, log_ratio: float = 0.0, *, task: str = "t", value: float = 0.0, turns: int = 1
) -> WeighedRollout:
    rewards = np.zeros(turns)
    rewards[-1] = reward
    return WeighedRollout(
        task=task,
        rewards_T=rewards,
        values_T=np.full(turns, value),
        log_ratios_T=np.full(turns, log_ratio / turns),
    )


# -- what is estimated


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("tree", [*TREES, *BLOCKS], ids=lambda tree: tree.name)
def test_the_doubly_robust_estimate_is_unbiased_for_every_value(tree: Tree, name: str) -> None:
    """Enumerated: E_μ of one rollout's estimate is the new policy's worth, whatever function of the history V̂ is."""
    policy = POLICIES[name](tree)
    ratios = [policy.ratio(one) for one in tree.dialogues]
    chances = [one.chance for one in tree.dialogues]
    assert math.fsum(p * rho for p, rho in zip(chances, ratios, strict=True)) == pytest.approx(1, abs=1e-12)
    for seed in range(3):
        found, spread = 0.0, []
        for one in tree.dialogues:
            draws = [random.Random(repr((seed, at, one.before(at)))) for at in range(len(one.rewards))]
            values = np.array([draw.uniform(-1, 2) for draw in draws])
            rollout = WeighedRollout(
                task="t", rewards_T=np.array(one.rewards), values_T=values, log_ratios_T=policy.log_ratios(one)
            )
            estimate = off_policy_values([rollout]).doubly_robust.value
            found += one.chance * estimate
            spread.append(abs(estimate - one.returns[0]))
        assert found == pytest.approx(policy.worth, abs=1e-12)
        assert max(spread) > 0.1, "estimates that are all right by themselves would show nothing"


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.name)
def test_over_all_dialogues_the_self_normalised_estimate_is_the_worth(tree: Tree) -> None:
    policy = POLICIES["better"](tree)
    rollouts = [
        weighed(one.returns[0], math.log(policy.ratio(one) * one.chance), task=str(at))
        for at, one in enumerate(tree.dialogues)
    ]
    assert off_policy_values(rollouts).self_normalised.value == pytest.approx(policy.worth, abs=1e-12)
    assert abs(policy.worth - OtherPolicy.towards_right(tree, 0.0).worth) > 0.05


floats = st.floats(-1, 2)


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.floats(0, 0.2), floats), min_size=1, max_size=4), st.integers(0, 5)),
        min_size=1,
        max_size=20,
    )
)
def test_of_the_policy_itself_both_are_the_plain_mean(listed: list[tuple[list[tuple[float, float]], int]]) -> None:
    rollouts = [
        WeighedRollout(
            task=f"t{task}",
            rewards_T=np.array([reward for reward, _ in turns]),
            values_T=np.array([value for _, value in turns]),
            log_ratios_T=np.zeros(len(turns)),
        )
        for turns, task in listed
    ]
    found = off_policy_values(rollouts)
    mean = math.fsum(reward for turns, _ in listed for reward, _ in turns) / len(listed)
    for one in (found.old, found.self_normalised, found.doubly_robust):
        assert one.value == pytest.approx(mean, abs=1e-12)
    for gain in (found.gain_self_normalised, found.gain_doubly_robust):
        assert gain.value == pytest.approx(0, abs=1e-12)
        if gain.low is not None and gain.high is not None:
            assert (gain.low, gain.high) == pytest.approx((0, 0), abs=1e-9)
    assert found.effective == pytest.approx(len(listed))
    assert found.weight.value == 1


def test_by_hand() -> None:
    rollouts = [
        WeighedRollout(
            task="a",
            rewards_T=np.array([0.5, 0.25]),
            values_T=np.array([0.4, 0.3]),
            log_ratios_T=np.log([2.0, 0.5]),
        ),
        WeighedRollout(task="b", rewards_T=np.array([0.0]), values_T=np.array([0.2]), log_ratios_T=np.log([0.5])),
    ]
    found = off_policy_values(rollouts)
    assert found.old.value == pytest.approx(0.375)
    assert found.self_normalised.value == pytest.approx(0.75 / 1.5)
    first = 0.4 + 2 * (0.5 + 0.3 - 0.4) + 2 * 0.5 * (0.25 - 0.3)
    second = 0.2 + 0.5 * (0 - 0.2)
    assert found.doubly_robust.value == pytest.approx((first + second) / 2)
    assert found.gain_doubly_robust.value == pytest.approx((first + second) / 2 - 0.375)
    assert found.effective == pytest.approx(1.5**2 / 1.25)
    assert found.weight.value == pytest.approx(0.75)
    assert (found.rollouts, found.tasks) == (2, 2)


def test_weights_beyond_all_numbers_are_refused_and_no_error() -> None:
    rollouts = [weighed(0.5, 2000.0 if number == 0 else -2000.0, task=f"t{number}") for number in range(40)]
    found = off_policy_values(rollouts)
    assert found.effective == pytest.approx(1)
    assert found.refusal is not None
    assert "the effective sample size is 1.0 of 40 rollouts (2.5%), expected 10% or more" in found.refusal


# -- intervals


def test_the_standard_error_is_that_of_cluster_means() -> None:
    means = np.array([0.1, 0.5, 0.4, 0.9])
    figure = Figure.quotient(means * 3, np.full(4, 3.0))
    assert figure.error == pytest.approx(means.std(ddof=1) / 2)
    assert figure.errors(np.ones((1, 4)))[0] == pytest.approx(figure.error)
    assert figure.errors(np.array([[2.0, 0, 1, 1]]))[0] == pytest.approx(np.std([0.1, 0.1, 0.4, 0.9], ddof=1) / 2)
    assert figure.value == pytest.approx(means.mean())
    doubled = figure.minus(Figure.quotient(means, np.ones(4)))
    assert doubled.value == pytest.approx(0)
    assert intervals([doubled]) == [pytest.approx((0, 0), abs=1e-12)]


def test_an_interval_is_never_narrower_than_the_t_interval() -> None:
    rng = np.random.default_rng(4)
    figure = Figure.quotient(rng.exponential(size=31), np.ones(31))
    ((low, high),) = [one for one in intervals([figure]) if one is not None]
    half = 2.0423 * figure.error
    assert low <= figure.value - half + 1e-4
    assert high >= figure.value + half - 1e-4
    assert high - figure.value > 1.1 * (figure.value - low), "skewed as the data are"
    assert intervals([figure]) == intervals([figure])
    assert intervals([figure]) != intervals([figure], seed=1)
    assert intervals([Figure.quotient(np.ones(1), np.ones(1))]) == [None]


def test_many_tasks_are_drawn_in_parts() -> None:
    rng = np.random.default_rng(0)
    figure = Figure.quotient(rng.random(5000), np.ones(5000))
    ((low, high),) = [one for one in intervals([figure]) if one is not None]
    assert (high - low) / 2 == pytest.approx(1.96 * figure.error, rel=0.1)


@pytest.mark.parametrize("reward", [0.0, 0.5, 1.0])
def test_rewards_that_are_all_the_same_leave_doubt(reward: float) -> None:
    rollouts = [weighed(reward, 0.1 * (number % 3), task=f"t{number % 40}", value=reward) for number in range(200)]
    found = off_policy_values(rollouts)
    unseen = 3.8415 / (40 + 3.8415)
    for one in (found.old, found.self_normalised, found.doubly_robust):
        assert one.value == pytest.approx(reward)
        assert (one.low, one.high) == pytest.approx((reward * (1 - unseen), reward + unseen * (1 - reward)), abs=1e-4)
    gain = found.gain_self_normalised
    assert (gain.low, gain.high) == pytest.approx((-unseen * reward, unseen * (1 - reward)), abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=3, unique=True),
    value=st.sampled_from([0.0, 0.5, 1.0]),
    shift=st.floats(-1.5, 1.5),
    tasks=st.integers(2, 40),
)
def test_an_interval_holds_its_own_estimate(rewards: list[float], value: float, shift: float, tasks: int) -> None:
    """Whatever V̂ is worth, and where all rewards are the same, too: there V̂ decides what the doubly robust one says."""
    rollouts = [
        weighed(rewards[at % len(rewards)], shift + 0.1 * (at % 3), task=f"t{at}", value=value) for at in range(tasks)
    ]
    found = off_policy_values(rollouts)
    for name in ("old", "self_normalised", "doubly_robust", "gain_self_normalised", "gain_doubly_robust", "weight"):
        one = getattr(found, name)
        assert one.low - 1e-12 <= one.value <= one.high + 1e-12, name


def test_the_draws_of_a_difference_are_paired() -> None:
    """What differs between tasks is in both policies' means, and not in the difference."""
    rng = np.random.default_rng(1)
    level = rng.random(40)
    rollouts = [
        weighed(0.9 * level[task] + 0.1 * good, math.log(1.5 if good else 0.5), task=f"t{task}")
        for task in range(40)
        for good in (0, 1)
    ]
    found = off_policy_values(rollouts)
    assert found.gain_self_normalised.value == pytest.approx(0.025)
    wide, narrow = found.self_normalised, found.gain_self_normalised
    assert wide.high is not None
    assert wide.low is not None
    assert narrow.high is not None
    assert narrow.low is not None
    assert narrow.high - narrow.low < 0.01 < 0.1 < wide.high - wide.low


@pytest.mark.slow
def test_intervals_cover_what_they_say() -> None:
    """The first of the draws of tests/bench/bench_off_policy.py, which takes 1,000 on every tree."""
    draws = 100
    found = on_trees((Tree(gate=True, copying=True, hidden=True),), draws)
    for name, row in found.items():
        assert row["refused"] <= 0.1, name
        for figure in FIGURES:
            assert row[figure] >= 0.9, (name, figure)


# -- refusals


def test_what_is_refused() -> None:
    def refusal(tasks: int, rho: float) -> str | None:
        """Half of the rollouts weigh 1, the others ρ."""
        rollouts = [
            weighed(float(at % 2), math.log(rho) if at % 2 else 0.0, task=f"t{at % tasks}") for at in range(120)
        ]
        return off_policy_values(rollouts).refusal

    assert refusal(30, 1.0) is None
    assert refusal(60, 0.5) is None
    few = refusal(29, 1.0)
    assert few == (
        "29 tasks are covered, expected 30 or more: hold the old policy's dialogues on more tasks (cm2 run), and score"
        " them"
    )
    heavy = [weighed(1.0, 4.0 if at == 0 else 0.0, task=f"t{at}") for at in range(40)]
    found = off_policy_values(heavy)
    rho = math.exp(4)
    assert found.effective == pytest.approx((39 + rho) ** 2 / (39 + rho**2))
    assert found.refusal is not None
    assert "rollouts of its own" in found.refusal
    both = off_policy_values(heavy[:20]).refusal
    assert both is not None
    assert "20 tasks" in both
    assert "effective sample size" in both


def test_no_rollouts_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        off_policy_values([])


def test_values_of_level_lambda_narrow_the_estimate() -> None:
    """Else V̂ would not be worth its fit: against importance sampling of the whole dialogue, which is V̂ = 0."""
    tree = Tree(copying=True)
    policy, known, rng = POLICIES["near"](tree), episodes(tree), np.random.default_rng(0)
    sample = Sample.of([(0, one) for one in draw(tree, 40, 8, rng)], [known])
    rollouts = sample.weighed([policy])
    plain = [replace(one, values_T=np.zeros_like(one.values_T)) for one in rollouts]
    with_values, without = (figures_of(one)["doubly_robust"].error for one in (rollouts, plain))
    assert with_values < 0.95 * without
