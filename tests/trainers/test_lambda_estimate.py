"""λ̂: near 1 where a turn does what the verdicts do not show, 0 where they show all; and what level auto makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent import GRPO
from cm2_agent.errors import TrainError
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.episodes import Episode
from cm2_agent.trainers.lambda_estimate import LambdaEstimate, estimate_lambda
from cm2_agent.trainers.previous_round import PreviousRound, previous_round, round_before
from cm2_agent.trainers.values import cross_fitted_values
from cm2_agent.types.group import Group
from tests.trainers.dialogues import group
from tests.trainers.trees import TREES, Tree
from tests.trainers.turns import score, turn


def estimate(groups: list[Group]) -> LambdaEstimate | None:
    made = [[Episode.of(one.score, one.trace) for one in each.rollouts] for each in groups]
    return estimate_lambda(made, cross_fitted_values(made))


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.name)
def test_what_the_verdicts_do_not_show_is_found(tree: Tree) -> None:
    found = estimate(tree.sampled(24, 8, seed=11))
    assert found is not None
    assert found.rollouts == 192
    if tree.hidden:
        assert found.p_value < 0.01
        assert found.lam == pytest.approx(192 * found.rho2 / (192 * found.rho2 + 1 - found.rho2))
        assert found.lam > 0.9
    else:
        assert (found.lam, found.rho2) == (0.0, 0.0)


def test_chance_is_taken_for_a_habit_as_rarely_as_the_test_says() -> None:
    tree = Tree(copying=True)
    found = [estimate(tree.sampled(12, 4, seed=seed)) for seed in range(60)]
    rejected = sum(one is not None and one.p_value <= 0.05 for one in found)
    assert rejected <= 8, "of 60 at 5 %: more than 8 has a chance of 1 %"


def test_too_little_to_tell() -> None:
    assert estimate(Tree().sampled(2, 8, seed=0)) is None, "two groups"
    assert estimate(Tree().sampled(3, 2, seed=0)) is None, "12 pairs"
    single = [replace(one, rollouts=tuple(replace(r, score=score(turn(0, 1, 1))) for r in one.rollouts[:1]))
              for one in Tree().sampled(40, 1, seed=0)]  # fmt: skip
    assert estimate(single) is None, "nobody to compare with"


# -- from round to round


def report(folder: Path, credit: Any) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"steps": 1, "credit": credit}))
    return folder


FOUND = {"lambda": 0.75, "rho2": 0.01, "p_value": 0.005, "pairs": 100, "rollouts": 300}


def test_lambda_comes_from_the_round_before(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    groups = Tree(hidden=True).sampled(8, 4, seed=4, tokenizer=tokenizer)
    keys: dict[str, Any] = {"tokenizer": tokenizer, "steps": 1, "ratio_band": None, "checks": 0}
    first = GRPO(policy(1), tmp_path / "first", level="auto", **keys)
    first.train(groups)
    credit: Any = first.report["credit"]
    assert (credit["level"], credit["lambda"], credit["lambda_from"]) == ("lambda", 1.0, "default")
    assert credit["why"] == "3 counted turns, no gate, no round before that tells ρ²: λ = 1 is unbiased"
    found = credit["estimate"]
    assert 0.5 < found["lambda"] < 1
    second = GRPO(tmp_path / "first", tmp_path / "second", level="lambda", steps=1, ratio_band=None, checks=0)
    second.train(groups)
    credit = second.report["credit"]
    assert (credit["lambda"], credit["lambda_from"]) == (found["lambda"], "the round before")
    other = GRPO(policy(1), tmp_path / "third", level="auto", previous=tmp_path / "first", **keys)
    other.train(groups)
    credit = other.report["credit"]
    assert credit["why"].startswith("3 counted turns, no gate, ρ² = ")
    assert credit["lambda"] == found["lambda"]


def test_what_a_report_may_hold(tmp_path: Path) -> None:
    good = report(
        tmp_path / "good", {"level": "lambda", "estimate": FOUND, "rates": [{"turn": None, "item": "a", "paid": 1}]}
    )
    assert previous_round(good) == PreviousRound(lam=0.75, rho2=0.01, rates={(None, "a"): 1.0})
    assert round_before(None, good) == previous_round(good)
    assert round_before(None, "a-hub-name") is None
    assert round_before(None, object()) is None
    none = report(tmp_path / "none", None)
    assert round_before(None, none) is None
    with pytest.raises(TrainError, match="its report says nothing of credit"):
        round_before(none, good)
    for number, credit in enumerate(
        [{"estimate": {**FOUND, "lambda": 2}}, {"estimate": {"lambda": 0.5}}, {"rates": [{"turn": 0, "item": "a"}]},
         {"rates": [{"turn": 0, "item": "a", "paid": "x"}]}, [1],
         {"contrast": {"falls": math.inf}}]
    ):  # fmt: skip
        with pytest.raises(TrainError, match="cannot be read as the report of a round before"):
            previous_round(report(tmp_path / str(number), credit))
    with pytest.raises(TrainError, match="cannot be read"):
        round_before(tmp_path / "nowhere", None)


# -- auto


def chosen(groups: list[Group], before: PreviousRound | None = None) -> tuple[Any, Any, Any]:
    credit = build_dataset(groups, level="auto", before=before).report.credit
    return credit["level"], credit.get("lambda"), credit["why"]


def test_auto_says_what_it_chose_and_why() -> None:
    before = PreviousRound(lam=0.25, rho2=0.001)
    assert chosen(Tree(gate=True).sampled(3, 4, seed=0), before) == (
        "lambda", 0.25, "3 counted turns, a gate that ends dialogues, ρ² = 0.001 in the round before: λ = 0.25",
    )  # fmt: skip
    assert chosen([group([1.0, 0.0])], before) == ("trajectory", None, "the reward is more than a checklist's turns")
    one = [replace(each, rollouts=tuple(replace(r, score=score(turn(0, 1, at or None), id=r.trace.id))
                                        for at, r in enumerate(each.rollouts)))
           for each in Tree().sampled(2, 2, seed=0)]  # fmt: skip
    assert chosen(one, before) == ("trajectory", None, "one counted turn: there is nothing to share out")


def test_auto_at_trajectory_is_trajectory() -> None:
    groups = [group([1.0, 0.25, 0.5]), group([0.5, 0.5]), group([1.0, None])]
    auto, plain = build_dataset(groups, level="auto"), build_dataset(groups)
    assert [row.advantages for each in auto.groups for row in each.rows] == [
        row.advantages for each in plain.groups for row in each.rows
    ]
    assert [each.informative for each in auto.groups] == [each.informative for each in plain.groups]
    assert auto.report.left_out == plain.report.left_out
    with pytest.raises(TrainError, match=r"level auto with lam 0\.5"):
        build_dataset(groups, level="auto", lam=0.5)


@given(st.lists(st.lists(st.integers(0, 16).map(lambda n: n / 16), min_size=1, max_size=4), min_size=1, max_size=5))
def test_norm_others_holds_at_whichever_level_auto_takes(rewards: list[list[float]]) -> None:
    groups = [group(list(own)) for own in rewards]
    found = build_dataset(groups, level="auto", norm="others")
    assert found.credit["level"] == "trajectory"
    centred = [[reward - fmean(own) for reward in own] for own in rewards]
    for at, (own, made) in enumerate(zip(centred, found.groups, strict=True)):
        others = [value for place, values in enumerate(centred) if place != at for value in values]
        deviation = pstdev(others) if others else 0.0
        divisor = deviation + 1e-6 if deviation > 0 else 1.0
        scalars = [row.spans[0].advantage for row in made.rows]
        assert scalars == pytest.approx([value / divisor for value in own], rel=1e-3, abs=1e-8)


def test_norm_others_leaves_out_what_is_left_out() -> None:
    groups = [group([1.0, 0.25, 0.5]), group([0.5, 0.0]), group([1.0, None])]
    plain, normed = build_dataset(groups, level="auto"), build_dataset(groups, level="auto", norm="others")
    assert normed.left_out == plain.left_out
    assert [len(each.rows) for each in normed.groups] == [len(each.rows) for each in plain.groups]
    ratios = [
        [one.token_advantages[0] / other.token_advantages[0] for one, other in zip(a.rows, b.rows, strict=True)
         if other.token_advantages[0]]
        for a, b in zip(normed.groups, plain.groups, strict=True)
    ]  # fmt: skip
    assert ratios[0] == pytest.approx([1 / (0.25 + 1e-6)] * 3), "the second group's deviation; the third has none"
    assert ratios[1] == pytest.approx([1 / (pstdev([1.0, 0.25, 0.5]) + 1e-6)] * 2)


# -- items that teach nothing


def test_items_that_teach_nothing_are_named() -> None:
    ids = ("never", "always", "alike", "varies")
    groups = []
    for number, each in enumerate(Tree().sampled(2, 2, seed=0)):
        rollouts = []
        for place, rollout in enumerate(each.rollouts):
            made = turn(0, 1, None, 1, 1 if number else None, 1 if place else None)
            named = replace(made, verdicts=tuple(replace(v, item=i) for v, i in zip(made.verdicts, ids, strict=True)))
            rollouts.append(replace(rollout, score=score(named, id=rollout.trace.id)))
        groups.append(replace(each, rollouts=tuple(rollouts)))
    found = build_dataset(groups).report.to_json()
    assert found["items"] == {"never_paid": ["never"], "always_paid": ["always"], "alike_in_groups": ["alike"]}
    assert "items" not in build_dataset([group([1.0, 0.0])]).report.to_json()
