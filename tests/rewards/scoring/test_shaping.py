"""The arithmetic of docs/method.md, 3 and 4: by hand where it gives an example, by hypothesis where it gives a law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.scoring import shaping
from cm2_agent.rewards.scoring.shaping import ItemColumn
from cm2_agent.types.score import Verdict


def sat(*flips: int | None, steps: int = 4) -> shaping.Matrix:
    return shaping.matrix(flips, steps)


def shares_of(paid: Any, weights: Any) -> list[shaping.Share]:
    return [
        shaping.Share.of(
            [
                Verdict(item=str(at), value=one, weight=weight, paid=one, cause="content" if one is None else None)
                for at, (one, weight) in enumerate(zip(*turn, strict=True))
            ]
        )
        for turn in zip(paid, weights, strict=True)
    ]


# -- by hand


def test_eq2_pays_a_flip_strictly_after_its_prerequisites() -> None:
    deps = [[], [0]]
    for parent, child, pays in [(1, 2, True), (2, 2, False), (3, 2, False), (1, None, False), (1, 4, True)]:
        matrix = sat(parent, child)
        assert shaping.payment(matrix, deps)[:, 1].any() == pays, (parent, child)
        assert shaping.paid_items([parent, child], deps)[1] == pays
    assert np.argwhere(shaping.payment(sat(1, 3), deps)).tolist() == [[0, 0], [2, 1]], "paid in the step of the flip"


def test_eq3_backfills_every_step_at_which_the_item_could_still_be_earned() -> None:
    filled = shaping.backfill(sat(1, 3, None), [[], [0], []])
    assert filled[:, 0].tolist() == [True, False, False, False]
    assert filled[:, 1].tolist() == [False, True, True, False], "not before its prerequisite, not after its flip"
    assert not filled[:, 2].any()


def test_the_dependency_rule_empties_and_blanks_along_chains() -> None:
    deps = [[], [0], [1], [3], []]
    yes, no, unknown = (
        ItemColumn(value=True, first_true_step=1),
        ItemColumn(value=False),
        ItemColumn(value=None, cause="content"),
    )
    assert [one.value for one in shaping.apply_dependencies([no, yes, yes, yes, yes], [[], [0], [1], [], []])] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert [one.value for one in shaping.apply_dependencies([yes, unknown, yes, yes, no], [*deps[:3], [2], [2]])] == [
        True,
        None,
        None,
        None,
        None,
    ]
    both = shaping.apply_dependencies([no, unknown, yes], [[], [], [0, 1]])
    assert (both[2].value, both[2].reason) == (False, "dependency")
    assert shaping.apply_dependencies([unknown, yes], [[], [0]])[1].cause == "content"


def test_a_chain_of_thousands_settles_without_recursion() -> None:
    chain = [ItemColumn(value=False), *[ItemColumn(value=True, first_true_step=1)] * 5000]
    deps = [[], *[[n] for n in range(5000)]]
    assert not any(
        one.value
        for one in shaping.apply_dependencies(chain[::-1], [[5000 - parent for parent in own] for own in deps][::-1])
    )


@pytest.mark.parametrize(
    ("paid", "weights", "tolerance", "reward"),
    [
        ([[True, False]], [[0.25, 0.75]], 0.2, 0.25),
        ([[True, None]], [[0.9, 0.1]], 0.2, 1.0),  # 0.9 of the 0.9 that was judged
        ([[True, False, None]], [[0.4, 0.4, 0.2]], 0.2, 0.5),  # at the tolerance
        ([[True, False, None]], [[0.4, 0.39, 0.21]], 0.2, None),  # beyond it
        ([[True, None]], [[0.5, 0.5]], 0.2, None),
        (
            [[True, None], [True, True], [False, False]],
            [[0.5, 0.5]] * 3,
            0.2,
            (1 + 1 + 0) / 3,
        ),  # the share is over all L turns
        (
            [[None], [True], [True], [True], [True], [True]],
            [[1.0]] * 6,
            0.2,
            None,
        ),  # a turn that nobody judged has no R_t
        ([[True, None]], [[1.0, 0.0]], 0.0, 1.0),  # a NULL that weighs nothing
        ([[None]], [[1.0]], 0.99, None),
        ([], [], 0.2, None),
    ],
)
def test_the_stored_reward_by_hand(paid: Any, weights: Any, tolerance: float, reward: float | None) -> None:
    got = shaping.stored_reward(shares_of(paid, weights), tolerance=tolerance)
    assert got == (None if reward is None else pytest.approx(reward, abs=1e-12))


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="turns false again"):
        shaping.first_true_steps(np.array([[False], [True], [False]]))
    with pytest.raises(ValueError, match="first row"):
        shaping.first_true_steps(np.array([[True], [True]]))
    with pytest.raises(ValueError, match="row 5"):
        shaping.matrix([5], 4)
    with pytest.raises(ValueError, match="L is 0"):
        shaping.trajectory_reward([], 0)
    for weights in ([], [0.0], [1.0, -1.0], [float("nan")]):
        with pytest.raises(ValueError, match="weights are"):
            shaping.normalised(weights)


@given(st.lists(st.booleans(), max_size=6), st.sampled_from(["reach", "hold", "avoid"]), st.booleans())
def test_columns_by_kind(values: list[bool], kind: Any, cut: bool) -> None:
    flip = shaping.first_true_step(values, kind, cut=cut)
    if kind == "reach":
        assert flip == (values.index(True) + 1 if True in values else None)
    elif cut or not values:
        assert flip is None
    else:
        assert flip == (len(values) if (values[-1] if kind == "hold" else True not in values) else None)


# -- laws


@st.composite
def turns(draw: st.DrawFn) -> tuple[list[int | None], list[list[int]], list[float], int]:
    """Flips after the rule of dependants, dependencies on earlier items, weights, S."""
    steps = draw(st.integers(1, 6))
    items = draw(st.integers(1, 6))
    deps = [draw(st.lists(st.integers(0, at - 1), unique=True, max_size=3)) if at else [] for at in range(items)]
    raw = draw(st.lists(st.none() | st.integers(1, steps), min_size=items, max_size=items))
    columns = shaping.apply_dependencies(
        [ItemColumn(value=flip is not None, first_true_step=flip) for flip in raw], deps
    )
    weights = draw(st.lists(st.floats(0, 10), min_size=items, max_size=items).filter(lambda ws: sum(ws) > 1e-6))
    return [one.first_true_step for one in columns], deps, shaping.normalised(weights), steps


@given(turns())
def test_flips_and_matrices_say_the_same(turn: Any) -> None:
    flips, deps, weights, steps = turn
    matrix = shaping.matrix(flips, steps)
    assert shaping.first_true_steps(matrix) == flips
    r = shaping.payment(matrix, deps)
    assert r.any(axis=0).tolist() == shaping.paid_items(flips, deps)
    assert (r.sum(axis=0) <= 1).all(), "each item is paid at most once"
    assert (r @ np.array(weights)).sum() == pytest.approx(
        shaping.turn_reward(shaping.paid_items(flips, deps), weights), abs=1e-12
    )
    assert not (r & ~shaping.backfill(matrix, deps)).any(), "what is paid could be earned"


@given(turns())
def test_rewards_are_in_the_unit_interval(turn: Any) -> None:
    flips, deps, weights, _ = turn
    assert 0 <= shaping.turn_reward(shaping.paid_items(flips, deps), weights) <= 1


@given(turns(), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(turn: Any, random: Any) -> None:
    flips, deps, weights, _ = turn
    order = list(range(len(flips)))
    random.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    moved = shaping.paid_items(
        [flips[old] for old in order], [[place[parent] for parent in deps[old]] for old in order]
    )
    paid = shaping.paid_items(flips, deps)
    assert moved == [paid[old] for old in order]
    assert shaping.turn_reward(moved, [weights[old] for old in order]) == pytest.approx(
        shaping.turn_reward(paid, weights), abs=1e-12
    )


@given(turns(), st.data())
def test_one_more_item_satisfied_never_lowers_the_reward(turn: Any, data: st.DataObject) -> None:
    flips, deps, weights, steps = turn
    before = shaping.turn_reward(shaping.paid_items(flips, deps), weights)
    missing = [item for item, flip in enumerate(flips) if flip is None]
    if not missing:
        assert before >= 0
        return
    item = data.draw(st.sampled_from(missing))
    more = [data.draw(st.integers(1, steps)) if at == item else flip for at, flip in enumerate(flips)]
    columns = shaping.apply_dependencies(
        [ItemColumn(value=flip is not None, first_true_step=flip) for flip in more], deps
    )
    after = shaping.turn_reward(shaping.paid_items([one.first_true_step for one in columns], deps), weights)
    assert after >= before - 1e-12


@given(turns())
def test_an_item_that_flips_with_or_before_its_prerequisite_is_unpaid(turn: Any) -> None:
    flips, deps, _, _ = turn
    for item, one in enumerate(shaping.paid_items(flips, deps)):
        ungrounded = any(
            flips[parent] is None or (flips[item] is not None and flips[parent] >= flips[item]) for parent in deps[item]
        )
        assert one == (flips[item] is not None and not ungrounded)


@given(
    st.lists(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=5), min_size=1, max_size=4),
    st.floats(0, 0.99),
    st.data(),
)
def test_null_never_becomes_a_number(paid: Any, tolerance: float, data: st.DataObject) -> None:
    weights = [shaping.normalised([data.draw(st.integers(1, 5)) for _ in items]) for items in paid]
    reward = shaping.stored_reward(shares_of(paid, weights), tolerance=tolerance)
    missing = sum(
        w for items, ws in zip(paid, weights, strict=True) for p, w in zip(items, ws, strict=True) if p is None
    ) / len(paid)
    unjudged_turn = any(all(p is None for p in items) for items in paid)
    assert (reward is None) == (missing > tolerance + 1e-12 or unjudged_turn)
    if reward is not None:
        assert 0 <= reward <= 1
        # what the missing verdicts would have been does not move it: each turn's mean is over what was judged
        by_hand = [
            sum(w for p, w in zip(items, ws, strict=True) if p)
            / sum(w for p, w in zip(items, ws, strict=True) if p is not None)
            for items, ws in zip(paid, weights, strict=True)
        ]
        assert reward == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-12)
