"""Level lambda: exactly unbiased at λ = 1 whatever the values are, and at every λ where they are exact."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm2_agent import GRPO
from cm2_agent.errors import TrainError
from cm2_agent.trainers.advantage import GROUP_PENDING, advantages
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.episodes import Episode
from cm2_agent.trainers.values import cross_fitted_values
from cm2_agent.types.group import Group
from tests.trainers.trees import KNOWN, TREES, TURNS, Dialogue, Tree
from tests.trainers.turns import score, turn

BLOCKS = tuple(replace(tree, block=True) for tree in TREES)


def credit(group: Sequence[Dialogue], **keys: Any) -> list[list[float]]:
    found = advantages([one.score for one in group], **keys).rollouts
    return [[rollout(at, 0) for at in range(len(one.rewards))] for one, rollout in zip(group, found, strict=True)]


def random_values(group: Sequence[Dialogue]) -> list[list[float]]:
    """Any function of the turn, what was chosen before it, and the other rollouts."""
    found = []
    for place, one in enumerate(group):
        others = [other.score.trace_id for at, other in enumerate(group) if at != place]
        draws = [random.Random(repr((place, at, one.before(at), others))) for at in range(len(one.rewards))]
        found.append([draw.uniform(-1, 2) for draw in draws])
    return found


def exact_values(tree: Tree, one: Dialogue) -> list[float]:
    table = tree.values(KNOWN["exact"])
    return [table[at, one.before(at)] for at in range(len(one.rewards))]


@pytest.mark.parametrize("tree", [*TREES, *BLOCKS], ids=lambda tree: tree.name)
def test_at_lambda_one_no_value_biases_the_update(tree: Tree) -> None:
    assert math.fsum(one.chance for one in tree.dialogues) == pytest.approx(1, abs=1e-15)
    true = tree.gradient()
    assert np.abs(true).max() > 0.01, "a gradient of 0 would prove nothing"
    found = tree.expected_update(lambda group: credit(group, level="lambda", values=random_values(group)), 2)
    np.testing.assert_allclose(found, true, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("tree", [*TREES, *BLOCKS], ids=lambda tree: tree.name)
def test_exact_values_bias_no_lambda(tree: Tree, lam: float) -> None:
    found = tree.expected_update(
        lambda group: credit(group, level="lambda", lam=lam, values=[exact_values(tree, one) for one in group]), 1
    )
    np.testing.assert_allclose(found, tree.gradient(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tree", BLOCKS, ids=lambda tree: tree.name)
def test_values_that_see_too_little_bias_every_lambda_below_one(tree: Tree) -> None:
    """Else the two tests above could not fail."""
    true = tree.gradient()
    wrong = tree.expected_update(lambda group: credit(group, level="lambda", lam=0.0, values=random_values(group)), 2)
    assert np.abs(wrong - true).max() > 0.01


@pytest.mark.parametrize("tree", [tree for tree in TREES if not tree.gate], ids=lambda tree: tree.name)
def test_the_turn_level_is_lambda_zero_with_constant_values(tree: Tree) -> None:
    """… and no gate, up to 1/L, and (n_t − 1)/n_t: its mean holds the rollout itself."""
    size = 3
    turns = tree.expected_update(lambda group: credit(group, level="turn"), size)
    zero = tree.expected_update(
        lambda group: credit(group, level="lambda", lam=0.0, values=[[0.4] * TURNS for _ in group]), size
    )
    np.testing.assert_allclose(turns, TURNS * (size - 1) / size * zero, rtol=0, atol=1e-12)


def test_by_hand() -> None:
    group = [
        score(turn(0, 2, 1), turn(1, 1, 1), turn(None, 3, 3), id="a"),
        score(turn(0, 1, None), turn(1, 0, None), turn(None, 1, None), id="b"),
    ]
    values = [[0.5, 0.25], [0.125]]
    first, second = advantages(group, level="lambda", lam=0.5, values=values).rollouts
    last = 2 / 3 - 0.25  # the block is paid with the last turn
    assert first.steps == {0: pytest.approx((1 / 3 + 0.25 - 0.5 + 0.5 * last,) * 2), 1: pytest.approx((last,))}
    assert second.steps == {0: pytest.approx((-0.125,))}, "a turn that was not reached is worth nothing"


def test_without_values_lambda_one_is_the_return_to_go() -> None:
    group = [
        score(turn(0, 1, 1), turn(1, 2, 1), id="a"),
        score(turn(0, 1, 1), turn(1, 1, None), id="b"),
        score(turn(0, 1, None), turn(1, 0, None), id="c"),
    ]
    happened = [[1, 2, 3], [1, 1], [1]]
    plain = advantages(group, level="return_to_go", happened=happened).rollouts
    for one, other in zip(advantages(group, level="lambda", happened=happened).rollouts, plain, strict=True):
        assert one.steps.keys() == other.steps.keys()
        for number, values in one.steps.items():
            assert values == pytest.approx(other.steps[number], abs=1e-12)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"level": "lambda", "lam": 1.5}, r"lam 1.5; expected a number in \[0, 1\]"),
        ({"level": "lambda", "lam": float("nan")}, "lam nan"),
        ({"level": "turn", "lam": 0.5}, "only level lambda"),
        ({"level": "trajectory", "values": [[0.0]]}, "only level lambda"),
        ({"level": "lambda", "values": [[0.0, 0.0]]}, r"`values` of \[2\] turns for rollouts of \[1\]"),
        ({"level": "lambda", "norm": "std"}, "uses no Fnorm"),
    ],
)
def test_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainError, match=words):
        advantages([score(turn(0, 1, 1))], **keys)


# -- of a whole round


def rows_by_trace(groups: Iterable[Group], **keys: Any) -> dict[str, list[float]]:
    dataset = build_dataset(groups, level="lambda", **keys)
    return {
        rollout.trace_id: [span.advantage for row in rollout.rows for span in row.spans]
        for group in dataset.groups
        for rollout in group.rollouts
    }


def test_the_rows_of_a_round_have_gae_with_values_of_the_other_groups() -> None:
    groups = Tree(gate=True, copying=True).sampled(9, 4, seed=5)
    episodes = [[Episode.of(one.score, one.trace) for one in group.rollouts] for group in groups]
    values = cross_fitted_values(episodes)
    for lam in (0.0, 0.6, 1.0):
        found = rows_by_trace(groups, lam=lam)
        assert len(found) == 36
        for group, own in zip(groups, values, strict=True):
            scores = [one.score for one in group.rollouts]
            by_hand = advantages(scores, level="lambda", lam=lam, values=[one.tolist() for one in own]).rollouts
            for one in by_hand:
                assert found[one.trace_id] == pytest.approx([one.steps[at][0] for at in sorted(one.steps)], abs=1e-12)
    assert rows_by_trace(groups) == rows_by_trace(iter(groups), lam=1.0), "λ is 1 by default; a stream does"


def test_the_divisor_is_the_other_groups() -> None:
    groups = Tree(copying=True).sampled(6, 4, seed=2)
    plain, divided = rows_by_trace(groups, lam=0.5), rows_by_trace(groups, lam=0.5, norm="others")
    for group in groups:
        own = [one.trace.id for one in group.rollouts]
        others = [value for name, values in plain.items() if name not in own for value in values]
        for name in own:
            assert divided[name] == pytest.approx([one / (float(np.std(others)) + 1e-6) for one in plain[name]])


def test_pending_and_flat_groups_beside_others() -> None:
    tree = Tree(gate=True)
    first, second, third, fourth = tree.sampled(4, 4, seed=8)
    dead = replace(second.rollouts[0].score, reward=None, lower=None, upper=None, null_reason="failure: ToolError: x")
    pending = replace(second, rollouts=(replace(second.rollouts[0], score=dead), *second.rollouts[1:]))
    dataset = build_dataset([first, pending, third, fourth, replace(first, rollouts=())], level="lambda")
    assert dataset.report.left_out == {"no reward: failure": 1, GROUP_PENDING: 3}
    assert [len(group.rollouts) for group in dataset.groups] == [4, 0, 4, 4, 0]
    assert [group.informative for group in dataset.groups] == [True, False, True, True, False]
    credit = dataset.report.credit
    assert (credit["level"], credit["lambda"], credit["lambda_from"], credit["estimate"]) == (
        "lambda",
        1.0,
        "default",
        None,
    )
    without = build_dataset([first, third, fourth], level="lambda")
    assert [row.advantages for group in dataset.groups for row in group.rows] == [
        row.advantages for group in without.groups for row in group.rows
    ]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"level": "lambda", "norm": "std"}, "norm 'std' at level lambda; expected none, or others"),
        ({"level": "lambda", "lam": -0.1}, r"lam -0.1; expected a number in \[0, 1\]"),
        ({"level": "lambda", "lam": "0.5"}, r"lam '0.5'; expected a number in \[0, 1\]"),
        ({"level": "return_to_go", "lam": 0.5}, "level return_to_go with lam 0.5"),
        ({"level": "turn", "norm": "others"}, "norm others at level turn"),
    ],
)
def test_refused_of_a_round(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainError, match=words):
        build_dataset(Tree().sampled(2, 2, seed=0), **keys)


def test_grpo_trains_at_level_lambda(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    groups = Tree(gate=True, copying=True).sampled(4, 4, seed=4, tokenizer=tokenizer)
    keys: dict[str, Any] = {"tokenizer": tokenizer, "steps": 1, "ratio_band": None, "checks": 0}
    lost = {}
    for lam in (0.0, 0.9):
        grpo = GRPO(policy(1), tmp_path / str(lam), level="lambda", lam=lam, norm="others", **keys)
        grpo.train(groups)
        assert grpo.report["level"] == "lambda"
        credit: Any = grpo.report["credit"]
        assert (credit["level"], credit["lambda"], credit["lambda_from"]) == ("lambda", lam, "given")
        lost[lam] = grpo.report["history"][0]["loss"]
    assert lost[0.0] != lost[0.9]
    with pytest.raises(TrainError, match=r"lam 2; expected a number in \[0, 1\]"):
        GRPO(policy(1), tmp_path / "three", tokenizer=tokenizer, level="lambda", lam=2)
