"""Contrast weights: unbiased for the objective that they are, the reported reward as it was, off after two falls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent import GRPO
from cm2_agent.errors import TrainError
from cm2_agent.trainers.advantage import advantages
from cm2_agent.trainers.contrast import Contrast
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.item_tally import ItemKey
from cm2_agent.trainers.previous_round import PreviousRound
from cm2_agent.types.score import Score
from tests.trainers.trees import Tree
from tests.trainers.turns import score, turn

CHANCES = {"a": (0.7, 0.3), "b": (0.4, 0.6)}
RATES: dict[ItemKey, float] = {(0, "C0"): 0.9, (0, "C1"): 0.5, (1, "C0"): 0.0, (1, "C1"): 0.25}


def world() -> list[tuple[float, list[tuple[str, int]], Score]]:
    """Two turns, a choice each, two items each: the first of turn 1 needs both choices right."""
    found = []
    for first, second in itertools.product((0, 1), repeat=2):
        made = score(
            turn(0, 1, 1, 1 if first else None, weights=(0.8, 0.2)),
            turn(1, 1, 1 if first and second else None, 1 if second else None, weights=(0.5, 0.5)),
        )
        found.append((CHANCES["a"][first] * CHANCES["b"][second], [("a", first), ("b", second)], made))
    return found


def slope(choice: tuple[str, int]) -> np.ndarray:
    out = np.zeros(4)
    at = 2 * "ab".index(choice[0])
    out[at : at + 2] = [-one for one in CHANCES[choice[0]]]
    out[at + choice[1]] += 1
    return out


def test_the_weights_are_those_of_the_paper() -> None:
    got = Contrast(eta=0.5, rates=RATES).weights([(0, "C0", 0.8), (0, "C1", 0.2)])
    raw = [0.8 * (0.5 + 0.5 * 4 * 0.9 * 0.1), 0.2 * (0.5 + 0.5)]
    assert got == pytest.approx([one / sum(raw) for one in raw], abs=1e-15)


@pytest.mark.parametrize(
    ("level", "factor"), [("return_to_go", 1.0), ("evidence", 1.0), ("trajectory", 2 / 3), ("lambda", 1.0)]
)
def test_unbiased_for_the_objective_with_these_weights(level: Any, factor: float) -> None:
    weights = Contrast(eta=0.5, rates=RATES)
    new = {
        key: one for at in (0, 1) for key, one in zip(
            [(at, "C0"), (at, "C1")],
            weights.weights([(at, "C0", (0.8, 0.5)[at]), (at, "C1", (0.2, 0.5)[at])]), strict=True)
    }  # fmt: skip
    true = np.zeros(4)
    for chance, choices, made in world():
        worth = sum(new[t.turn or 0, v.item] * (v.pays or 0.0) for t in made.turns for v in t.verdicts) / 2
        true += chance * worth * sum(map(slope, choices))
    found = np.zeros(4)
    for drawn in itertools.product(world(), repeat=3):
        chance = math.prod(one[0] for one in drawn)
        got = advantages([weights(one[2]) for one in drawn], level=level).rollouts
        for (_, choices, _), one in zip(drawn, got, strict=True):
            found += chance / 3 * sum(one(at, 0) * slope(choice) for at, choice in enumerate(choices))
    np.testing.assert_allclose(found, factor * true, rtol=0, atol=1e-12)
    assert np.abs(true).max() > 0.01


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5), st.floats(0, 0.99))
def test_weights_stay_weights(items: list[tuple[float, float]], eta: float) -> None:
    rates: dict[ItemKey, float] = {(0, str(at)): rate for at, (_, rate) in enumerate(items)}
    base: list[tuple[int | None, str, float]] = [(0, str(at), weight) for at, (weight, _) in enumerate(items)]
    got = Contrast(eta=eta, rates=rates).weights(base)
    assert all(one >= 0 for one in got)
    assert sum(got) == pytest.approx(sum(weight for weight, _ in items))
    assert Contrast(eta=0.0, rates=rates).weights(base) == pytest.approx([weight for weight, _ in items])


def test_nulls_stay_nulls() -> None:
    weights = Contrast(eta=0.5, rates=RATES)
    hidden = score(turn(0, 1, 1, "?", weights=(0.8, 0.2)), null_reason="verdicts")
    made = weights(hidden)
    known = weights.weights([(0, "C0", 0.8), (0, "C1", 0.2)])
    assert made.reward is None
    assert (made.lower, made.upper) == pytest.approx((known[0], 1.0))
    assert weights(score(turn(0, 1, 1, "!"), null_reason="verdicts")).lower is None


def test_the_reported_reward_has_the_base_weights() -> None:
    groups = Tree(gate=True).sampled(4, 4, seed=1)
    rates: dict[ItemKey, float] = {(0, "C0"): 0.5, (1, "C0"): 0.1, (2, "C0"): 0.9}
    before = PreviousRound(rates=rates, mean=0.0)
    plain, weighed = build_dataset(groups), build_dataset(groups, contrast=0.5, before=before)
    assert (weighed.report.lower, weighed.report.upper) == (plain.report.lower, plain.report.upper)
    credit: Any = weighed.report.credit
    assert credit["contrast"] == {"eta": 0.5, "on": True, "why": None, "mean": plain.report.lower, "falls": 0}
    assert {one["item"] for one in credit["rates"]} == {"C0"}


def test_off_without_a_round_before_and_after_two_falls() -> None:
    rates: dict[ItemKey, float] = {(0, "C0"): 0.5}
    assert Contrast.of(0.5, None, 0.4).off == "no round before says how often the items are paid"
    first = Contrast.of(0.5, PreviousRound(rates=rates, mean=0.5), 0.4)
    assert (first.off, first.falls) == (None, 1)
    risen = Contrast.of(0.5, PreviousRound(rates=rates, mean=0.4, falls=1), 0.45)
    assert (risen.off, risen.falls) == (None, 1)
    second = Contrast.of(0.5, PreviousRound(rates=rates, mean=0.45, falls=1), 0.3)
    assert (second.off, second.falls) == ("the mean reward fell in 2 rounds", 2)
    base = score(turn(0, 1, 1))
    assert second(base) is base
    assert Contrast.of(0.5, PreviousRound(rates=rates, mean=0.3, falls=2), 0.9).off, "and it stays off"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"contrast": 0.5, "norm": "std"}, "contrast with norm std"),
        ({"contrast": 1.0}, r"contrast 1.0; expected η in \[0, 1\)"),
        ({"contrast": True}, "contrast True"),
        ({"contrast": float("nan")}, "contrast nan"),
    ],
)
def test_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainError, match=words):
        build_dataset(Tree().sampled(2, 2, seed=0), **keys)
    with pytest.raises(TrainError, match=words):
        GRPO("model", "out", **keys)


def test_refused_of_a_stack() -> None:
    stack = replace(score(turn(0, 1, 1)), components={"length": 0.5})
    with pytest.raises(TrainError, match="components of a stack; leave contrast out"):
        Contrast(eta=0.5, rates=RATES)(stack)


def test_rates_go_from_round_to_round(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    groups = Tree(copying=True).sampled(4, 4, seed=4, tokenizer=tokenizer)
    keys: dict[str, Any] = {"steps": 1, "ratio_band": None, "checks": 0, "contrast": 0.5}
    first = GRPO(policy(1), tmp_path / "first", tokenizer=tokenizer, **keys)
    first.train(iter(groups))
    credit: Any = first.report["credit"]
    assert not credit["contrast"]["on"]
    paid = [float(r.score.turns[1].reward or 0) for each in groups for r in each.rollouts]
    assert {"turn": 1, "item": "C0", "paid": round(sum(paid) / len(paid), 6)} in credit["rates"]
    second = GRPO(tmp_path / "first", tmp_path / "second", level="return_to_go", **keys)
    second.train(iter(groups))
    credit = second.report["credit"]
    assert credit["contrast"] == {**credit["contrast"], "on": True, "falls": 0}
