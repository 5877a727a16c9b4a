"""The rule of promotion: what it spends, what it promotes, and how rarely it does so by chance."""

from __future__ import annotations

import math
import random

import pytest

from cm2_agent.errors import TrainError
from cm2_agent.loop.promotion import Decision, PromotionRule, Values, paired


def drawn(rng: random.Random, tasks: int, skill: float, dialogues: int = 2) -> dict[str, list[float | None]]:
    return {f"t{n}": [sum(rng.random() < skill for _ in range(3)) / 3 for _ in range(dialogues)] for n in range(tasks)}


@pytest.mark.parametrize("rounds", [1, 4, 9])
def test_all_histories_together_spend_alpha(rounds: int) -> None:
    reused, fresh = PromotionRule(rounds=rounds, alpha=0.1), PromotionRule(rounds=rounds, alpha=0.1, fresh=True)
    numbers = range(1, rounds + 1)
    assert math.isclose(sum(2 ** (number - 1) * reused.share(number) for number in numbers), 0.1)
    assert math.isclose(sum(fresh.share(number) for number in numbers), 0.1)
    assert reused.share(1) == fresh.share(1)


def test_a_policy_that_behaves_alike_is_promoted_at_most_as_often_as_alpha() -> None:
    rng, rule, trials = random.Random(5), PromotionRule(rounds=4, alpha=0.3), 150
    promoted = 0
    for _ in range(trials):
        found = [rule.decide(n, drawn(rng, 12, 0.6), drawn(rng, 12, 0.6)).promoted for n in (1, 2, 3, 4)]
        promoted += any(found)
    assert 0 < promoted <= 0.3 * trials  # the test can fail, and does not


def test_a_better_policy_is_promoted_and_a_worse_one_never() -> None:
    rng, rule = random.Random(6), PromotionRule(rounds=4)
    better, worse = drawn(rng, 40, 0.8), drawn(rng, 40, 0.4)
    for number in (1, 2, 3, 4):
        found = rule.decide(number, better, worse)
        assert found.promoted
        assert found.p is not None
        assert found.p <= found.share == rule.share(number)
        assert found.gain is not None
        assert found.interval is not None
        assert found.interval[0] < found.gain < found.interval[1]
        assert not rule.decide(number, worse, better).promoted


def test_a_gain_that_may_be_chance_keeps_the_promoted_policy() -> None:
    one: Values = {f"t{n}": [float(n < 7)] for n in range(10)}
    other: Values = {f"t{n}": [float(n < 4)] for n in range(10)}
    found = PromotionRule(rounds=1).decide(1, one, other)
    assert (found.promoted, found.p) == (False, 0.125)
    assert found.gain == pytest.approx(0.3)
    assert found.why == "not better by more than chance: p 0.12, at most 0.05 expected"


def test_a_task_of_which_a_value_is_missing_is_left_out() -> None:
    one: Values = {"a": [1.0, None], "b": [1.0, 1.0], "c": [1.0], "d": [], "e": [0.5]}
    other: Values = {"a": [0.0, 0.0], "b": [0.0, 0.5], "c": [None], "d": [], "f": [0.5]}
    assert paired(one, other) == ({"b": (1.0, 0.25)}, 5)
    found = PromotionRule(rounds=1).decide(1, {"a": [None]}, {"a": [1.0]})
    assert found == Decision(promoted=False, why="no task could be compared", left_out=1, share=0.05)


def test_how_many_tasks_a_loop_needs() -> None:
    rule = PromotionRule(rounds=4)
    assert rule.least_tasks == 10  # 2^-10 < .05/32 < 2^-9
    needed: Values = {f"t{n}": [1.0] for n in range(rule.least_tasks)}
    nothing: Values = {name: [0.0] for name in needed}
    assert rule.decide(4, needed, nothing).promoted
    fewer = dict(list(needed.items())[1:])
    assert not rule.decide(4, fewer, {name: [0.0] for name in fewer}).promoted
    with pytest.raises(TrainError, match="tasks of its own to each"):
        _ = PromotionRule(rounds=30).least_tasks
    assert PromotionRule(rounds=30, fresh=True).least_tasks == 10


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"rounds": 2, "alpha": 0.0}, {"rounds": 2, "alpha": 1.0}])
def test_numbers_that_cannot_be_meant(wrong: dict[str, float]) -> None:
    with pytest.raises(TrainError, match="expected 1 or more"):
        PromotionRule(**wrong)  # type: ignore[arg-type]
