"""Payments: soft dependencies by hand and against the formula, any_of, and that hard dependencies alone are Eq. 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.scoring import shaping
from cm2_agent.rewards.scoring.payments import INAPPLICABLE, REST, Links, Outcome, backfilled, only_open, settle
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.rewards.scoring.shaping import ItemColumn
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from tests.rewards.talk import call, say, trace, turn

NO = ItemColumn(value=False)
POLICY = ItemColumn(value=None, cause="content", reason="judge failed")
WAITS = ItemColumn(value=None, cause="infrastructure", reason="judge failed")
PAID = ItemColumn(value=True, first_true_step=5, reason="not applicable")
STEPS = 5


def at(step: int) -> ItemColumn:
    return ItemColumn(value=True, first_true_step=step)


def links(*waits: dict[int, float], any_of: dict[int, tuple[int, ...]] | None = None) -> Links:
    """The edges as {prerequisite: λ}, one mapping an item."""
    rests = any_of or {}
    return Links(
        deps=tuple(tuple(one) for one in waits),
        soft=tuple(tuple(one.values()) for one in waits),
        any_of=tuple(rests.get(place, ()) for place in range(len(waits))),
    )


def paid(columns: Sequence[ItemColumn], edges: Links) -> list[float]:
    return [round(one.payment, 9) for one in settle(columns, edges)]


# -- soft dependencies


@pytest.mark.parametrize(
    ("looks", "tells", "payments"),
    [
        (at(1), at(2), [1, 1]),  # grounded
        (at(2), at(2), [1, 0.6]),  # in the same step
        (at(3), at(2), [1, 0.6]),  # the look-up came after
        (NO, at(2), [0, 0.6]),  # a guess
        (at(1), NO, [1, 0]),
        (POLICY, at(2), [0, 0.6]),  # what the policy hides was not paid
        (PAID, at(2), [1, 1]),  # what does not apply and is paid holds nobody up
        (INAPPLICABLE, at(2), [0, 0.6]),
    ],
)
def test_a_soft_dependency_by_hand(looks: ItemColumn, tells: ItemColumn, payments: list[float]) -> None:
    assert paid([looks, tells], links({}, {0: 0.6})) == payments


def test_a_pending_soft_prerequisite_leaves_the_payment_open() -> None:
    (_, open_, false) = settle([WAITS, at(2), NO], links({}, {0: 0.6}, {0: 0.6}))
    assert (open_.column.value, open_.column.cause, open_.pending) == (None, "infrastructure", True)
    assert false.column.value is False
    (_, own) = settle([WAITS, POLICY], links({}, {0: 0.6}))
    assert own.column == POLICY


def test_chains_by_hand() -> None:
    soft = links({}, {0: 0.6}, {1: 0.5})
    assert paid([at(1), at(2), at(3)], soft) == [1, 1, 1]
    assert paid([NO, at(2), at(3)], soft) == [0, 0.6, 0.8]  # 0.6 + 0.4 · 0.5
    assert paid([NO, NO, at(3)], soft) == [0, 0, 0.5]
    assert paid([at(1), at(3), at(2)], soft) == [1, 1, 0.5]
    hard_after_soft = links({}, {0: 0.6}, {1: 0.0})
    assert paid([NO, at(2), at(3)], hard_after_soft) == [0, 0.6, 0.6], "what its prerequisite lacks it lacks too"
    assert paid([NO, at(3), at(2)], hard_after_soft) == [0, 0.6, 0]
    assert paid([at(4), at(2), at(5)], hard_after_soft) == [1, 0.6, 0.6], "the look-up came too late for both"
    soft_after_hard = links({}, {0: 0.0}, {1: 0.5})
    assert paid([at(2), at(2), at(3)], soft_after_hard) == [1, 0, 0.5], "satisfied and not paid is not paid"
    assert paid([at(2), at(2), at(3)], links({}, {0: 0.0}, {1: 0.0})) == [1, 0, 1], "Eq. 2 asks for satisfaction alone"
    assert paid([NO, NO, at(1)], links({}, {}, {0: 0.6, 1: 0.5})) == [0, 0, 0.3]
    aside = links({}, {0: 0.0}, {1: 0.0}, {1: 0.5})
    assert paid([at(1), at(1), at(2), at(2)], aside) == [1, 0, 1, 0.5], "satisfied is enough for the hard one alone"


def test_backfill_pays_what_the_step_would_have_paid() -> None:
    rb = backfilled([at(2), at(4)], links({}, {0: 0.6}), STEPS)
    assert [[round(one, 9) for one in row] for row in rb] == [[1, 0.6], [1, 0.6], [0, 1], [0, 1], [0, 0]]
    hard = backfilled([at(1), at(3), NO], Links.hard([[], [0], []]), STEPS)
    eq3 = shaping.backfill(shaping.matrix([1, 3, None], STEPS), [[], [0], []])
    assert hard == eq3.astype(float).tolist()


flips = st.none() | st.integers(1, STEPS)


@st.composite
def acyclic(draw: st.DrawFn, softness: st.SearchStrategy[float]) -> tuple[list[int | None], list[dict[int, float]]]:
    size = draw(st.integers(1, 6))
    waits = [
        draw(st.dictionaries(st.integers(0, place - 1), softness, max_size=3)) if place else {} for place in range(size)
    ]
    return draw(st.lists(flips, min_size=size, max_size=size)), waits


def by_formula(steps: Sequence[int | None], waits: Sequence[dict[int, float]]) -> list[float]:
    """q_c = p_c · Π_j (q_j + (1 − q_j) λ_jc), q_j before the step, for soft dependencies alone."""
    q: list[float] = []
    for place, flip in enumerate(steps):
        product = 0.0 if flip is None else 1.0
        for parent, soft in waits[place].items():
            other = steps[parent]
            before = q[parent] if flip is not None and other is not None and other < flip else 0.0
            product *= before + (1 - before) * soft
        q.append(product)
    return q


def columns_of(steps: Sequence[int | None]) -> list[ItemColumn]:
    return [NO if step is None else at(step) for step in steps]


@given(acyclic(st.floats(0.01, 0.99)))
def test_soft_dependencies_are_the_formula(drawn: tuple[list[int | None], list[dict[int, float]]]) -> None:
    steps, waits = drawn
    assert [one.payment for one in settle(columns_of(steps), links(*waits))] == pytest.approx(by_formula(steps, waits))


@given(acyclic(st.just(0.0)))
def test_hard_dependencies_alone_are_eq_2(drawn: tuple[list[int | None], list[dict[int, float]]]) -> None:
    """Also on the way that soft ones take: an item of no concern makes the turn one with soft dependencies."""
    steps, waits = drawn
    deps = [list(one) for one in waits]
    columns = columns_of(steps)
    after = shaping.apply_dependencies(columns, deps)
    want = shaping.paid_items([one.first_true_step for one in after], deps)
    aside: list[dict[int, float]] = [{}, {len(steps): 0.5}]
    for got in (settle(columns, links(*waits)), settle([*columns, NO, NO], links(*waits, *aside))[: len(columns)]):
        assert [one.column for one in got] == after
        assert [one.payment for one in got] == [float(one) for one in want]
    matrix = shaping.matrix([one.first_true_step for one in after], STEPS)
    eq3 = shaping.backfill(matrix, deps).astype(float).tolist()
    assert [row[: len(columns)] for row in backfilled([*columns, NO, NO], links(*waits, *aside), STEPS)] == eq3


mixed = acyclic(st.sampled_from([0.0, 0.25, 0.6, 0.9]))


@given(mixed, st.data())
def test_payments_are_shares_and_grow_with_what_was_done(
    drawn: tuple[list[int | None], list[dict[int, float]]], data: st.DataObject
) -> None:
    """Satisfying an item earlier, or at all, lowers no payment of those that wait for it."""
    steps, waits = drawn
    before = settle(columns_of(steps), links(*waits))
    assert all(0 <= one.payment <= 1 for one in before)
    place = data.draw(st.integers(0, len(steps) - 1))
    sooner = [*steps]
    sooner[place] = 1 if steps[place] is None else data.draw(st.integers(1, steps[place] or 1))
    after = settle(columns_of(sooner), links(*waits))
    for at_, (one, other) in enumerate(zip(before, after, strict=True)):
        assert at_ == place or other.payment >= one.payment - 1e-12
    rb = backfilled(columns_of(steps), links(*waits), STEPS)
    for at_, one in enumerate(before):
        flip = one.column.first_true_step
        if flip is not None:
            assert rb[flip - 1][at_] == pytest.approx(one.payment)


@given(mixed, st.data())
def test_nothing_that_the_policy_hides_pays_more(
    drawn: tuple[list[int | None], list[dict[int, float]]], data: st.DataObject
) -> None:
    steps, waits = drawn
    place = data.draw(st.integers(0, len(steps) - 1))
    failed, hidden = columns_of(steps), columns_of(steps)
    failed[place], hidden[place] = NO, POLICY
    before, after = settle(failed, links(*waits)), settle(hidden, links(*waits))
    assert all(other.payment <= one.payment + 1e-12 for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("soft", [0.25, 0.6, 0.9])
def test_the_grounded_path_beats_the_guess(soft: float) -> None:
    """By (1 − λ)·w, through the whole scorer."""
    looked = Item("looks_up", check={"called": "get_order"}, weight=1)
    told = Item(
        "tells", check={"reply_matches": "2026-05-20"}, weight=3, depends_on=[{"item": "looks_up", "soft": soft}]
    )
    free = Item("looked_free", check={"called": "get_order"}, weight=0)
    scorer = ChecklistScorer(Checklist(looked, told, free, name="soft"))
    grounded = scorer.score_sync(trace(turn("When?", call("get_order", id=7), say("On 2026-05-20."))))
    guessed = scorer.score_sync(trace(turn("When?", say("On 2026-05-20."), call("get_order", id=7), say("So it is."))))
    assert grounded.reward == grounded.lower == grounded.upper == 1.0
    assert guessed.reward == guessed.lower == pytest.approx(1.0 - (1 - soft) * 0.75)
    tells = next(one for one in guessed.verdicts if one.item == "tells")
    assert (tells.paid, tells.payment, tells.soft, tells.depends_on) == (True, soft, (soft,), (0,))
    assert next(one for one in grounded.verdicts if one.item == "tells").payment is None


# -- any_of


@pytest.mark.parametrize(
    ("first", "second", "value", "step", "cause", "payment"),
    [
        (at(3), at(2), True, 2, None, 1),
        (at(3), NO, True, 3, None, 1),
        (NO, NO, False, None, None, 0),
        (POLICY, NO, None, None, "content", 0),
        (POLICY, WAITS, None, None, "infrastructure", 0),
        (WAITS, at(4), True, 4, None, 1),
        (NO, PAID, True, 5, None, 1),
        (INAPPLICABLE, NO, False, None, None, 0),
        (INAPPLICABLE, at(1), True, 1, None, 1),
    ],
)
def test_any_of_by_hand(
    first: ItemColumn, second: ItemColumn, value: bool | None, step: int | None, cause: str | None, payment: float
) -> None:
    one = settle([first, second, REST], links({}, {}, {}, any_of={2: (0, 1)}))[2]
    assert (one.column.value, one.column.first_true_step, one.column.cause) == (value, step, cause)
    assert one.payment == payment


def test_any_of_what_does_not_apply_does_not_apply() -> None:
    rest = links({}, {}, {}, {2: 0.0}, any_of={2: (0, 1)})
    outcomes = settle([INAPPLICABLE, INAPPLICABLE, REST, at(2)], rest)
    assert [one.applies for one in outcomes] == [False] * 4, "nor does what waits for it"


def test_any_of_pays_as_the_best_paid_of_its_items() -> None:
    edges = links({}, {0: 0.6}, {0: 0.25}, {}, {3: 0.5}, any_of={3: (1, 2)})
    assert paid([NO, at(2), at(1), REST, at(3)], edges) == [0, 0.6, 0.25, 0.6, 0.8]
    assert paid([NO, at(4), at(1), REST, at(3)], edges)[3:] == [0.6, 0.625], "before step 4 it was worth 0.25"
    assert paid([NO, at(2), NO, REST, at(2)], edges)[3:] == [0.6, 0.5]


def test_any_of_counts_items_that_are_paid_and_not_those_that_are_only_satisfied() -> None:
    edges = links({}, {0: 0.0}, {}, any_of={2: (1,)})
    ungrounded = settle([at(2), at(2), REST], edges)[2]
    assert (ungrounded.column.value, ungrounded.payment) == (False, 0)
    waits = links({}, {}, {}, {2: 0.0}, any_of={3: (0, 1)})
    assert settle([at(1), at(3), at(2), REST], waits)[3].column.first_true_step == 3, "the one that came in time"
    assert paid([at(1), NO, at(2), REST], waits)[3] == 0


@given(mixed, st.data())
def test_any_of_is_worth_at_least_each_of_its_items(
    drawn: tuple[list[int | None], list[dict[int, float]]], data: st.DataObject
) -> None:
    steps, waits = drawn
    children = tuple(data.draw(st.lists(st.integers(0, len(steps) - 1), min_size=1, unique=True)))
    edges = links(*waits, {}, any_of={len(steps): children})
    outcomes: list[Outcome] = settle([*columns_of(steps), REST], edges)
    assert outcomes[-1].payment == max(outcomes[child].payment for child in children)
    assert (outcomes[-1].column.value is True) == (outcomes[-1].payment > 0)


# -- what need not be asked


def test_what_hangs_on_any_of_stays_open_while_one_of_its_items_is() -> None:
    edges = links({}, {}, {}, {2: 0.0}, any_of={2: (0, 1)})
    assert only_open([NO, None, REST, None], edges) == [NO, None, REST, None]
    closed: list[Any] = only_open([NO, NO, REST, None], edges)
    assert (closed[3].value, closed[3].reason) == (False, "dependency")
    soft = only_open([NO, None], links({}, {0: 0.5}))
    assert soft == [NO, None], "a soft prerequisite that is false closes nothing"


def test_a_chain_of_thousands_settles_without_recursion() -> None:
    size = 3000
    edges = links(*({} if place == 0 else {place - 1: 0.5} for place in range(size)))
    assert math.isclose(settle([at(1)] * size, edges)[-1].payment, 0.5)
    nested = Links(deps=((),) * size, soft=((),) * size, any_of=((), *((place - 1,) for place in range(1, size))))
    assert settle([at(1), *[REST] * (size - 1)], nested)[-1].payment == 1
