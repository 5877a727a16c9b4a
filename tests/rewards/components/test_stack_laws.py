"""The laws of a stack: what holds of it whatever its components say, and its bounds where they do not say all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.components.outcome import outcome
from cm2_agent.rewards.components.stack import (
    Role,
    Stack,
    StackTerm,
    add,
    combine,
    combine_bounds,
    gate,
    multiply,
    penalty,
)
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Component, Score
from cm2_agent.types.score_bounds import Bounds
from cm2_agent.types.trace import Trace
from tests.rewards.components.stacking import constant, half_judged, score, sometimes
from tests.rewards.talk import call, say, trace, turn

values = st.none() | st.floats(0, 1)
parts: st.SearchStrategy[Role] = st.sampled_from(["gate", "multiply", "add", "penalty"])


@st.composite
def terms(draw: st.DrawFn, with_penalties: bool = True) -> list[tuple[StackTerm, float | None]]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        part = draw(parts if with_penalties else parts.filter(lambda one: one != "penalty"))
        term = StackTerm(
            role=part,
            reward=constant(f"r{number}", 1.0),
            weight=draw(st.floats(0.01, 9)),
            threshold=draw(st.floats(0.01, 1)),
        )
        found.append((term, draw(values)))
    return found


def combined(given: list[tuple[StackTerm, float | None]]) -> float | None:
    return combine([term for term, _ in given], {term.name: value for term, value in given})


@given(terms(with_penalties=False))
def test_without_penalties_a_reward_is_in_the_unit_interval(given: list[tuple[StackTerm, float | None]]) -> None:
    found = combined(given)
    assert (found is None) == any(value is None for _, value in given)
    assert found is None or 0 <= found <= 1


@given(terms(), st.data())
def test_the_bounds_hold_whatever_a_null_hides(
    given: list[tuple[StackTerm, float | None]], data: st.DataObject
) -> None:
    stack = [term for term, _ in given]
    bounds = {
        term.name: Bounds(lower=0.0, upper=1.0) if value is None else Bounds(lower=value, upper=value)
        for term, value in given
    }
    least, most = combine_bounds(stack, bounds)
    hidden = {term.name: data.draw(st.floats(0, 1)) if value is None else value for term, value in given}
    found = combine(stack, hidden)
    assert least is not None
    assert most is not None
    assert found is not None
    assert least - 1e-9 <= found <= most + 1e-9
    pending = {**bounds, given[0][0].name: None}
    assert combine_bounds(stack, pending) == (None, None)


@given(terms())
def test_penalties_take_off_at_most_their_weight(given: list[tuple[StackTerm, float | None]]) -> None:
    found = combined(given)
    assert (found is None) == any(value is None for _, value in given)
    assert found is None or -sum(term.weight for term, _ in given if term.role == "penalty") - 1e-9 <= found <= 1


@given(terms(), st.randoms(use_true_random=False))
def test_the_order_of_the_rewards_does_not_matter(given: list[tuple[StackTerm, float | None]], random: Any) -> None:
    mixed = list(given)
    random.shuffle(mixed)
    found = combined(given)
    assert combined(mixed) == (None if found is None else pytest.approx(found, abs=1e-12))
    if any(term.role != "add" for term, _ in given) or len(given) > 1:
        assert Stack(*(term for term, _ in mixed)).version == Stack(*(term for term, _ in given)).version


@given(terms(), st.integers(0, 5), st.floats(0, 1))
def test_a_better_component_never_lowers_the_reward(
    given: list[tuple[StackTerm, float | None]], at: int, by: float
) -> None:
    at = at % len(given)
    term, value = given[at]
    before = combined(given)
    if before is None or value is None:
        return
    better = max(0.0, value - by) if term.role == "penalty" else min(1.0, value + by)
    after = combined([*given[:at], (term, better), *given[at + 1 :]])
    assert after is not None
    assert after >= before - 1e-12


@given(
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.integers(0, 5),
    st.lists(st.integers(1, 5), min_size=6, max_size=6),
)
def test_one_more_item_satisfied_never_lowers_a_stack(done: list[bool], at: int, weights: list[int]) -> None:
    items = [Item(f"i{number}", check={"called": f"t{number}"}, weight=weights[number]) for number in range(len(done))]
    stack = Stack(Checklist(*items), outcome("success"))

    def reward(of: list[bool]) -> float:
        steps = [call(f"t{number}") if yes else call("nothing") for number, yes in enumerate(of)]
        one = trace(turn("Go", *steps))
        found = asyncio.run(stack(Trace(id="t", runs=one.runs, outcomes={"success": 1.0}))).reward
        assert found is not None
        return found

    more = [yes or number == at % len(done) for number, yes in enumerate(done)]
    assert reward(more) >= reward(done) - 1e-12


async def test_a_null_of_a_component_is_unpaid_only_where_it_says_that_the_policy_caused_it() -> None:
    def unreadable(trace: Trace) -> Component:
        return Component(name="x", version="1", value=None, cause="content", explanation="no answer in it")

    def raises(trace: Trace) -> float:
        raise LookupError("away")

    found = await score(add(constant("a", 1.0), 3), add(unreadable, 1), penalty(constant("long", 1.0), 0.25))
    assert (found.reward, found.null_reason, found.pending) == (None, "component: unreadable", False)
    assert (found.lower, found.upper) == (0.5, 0.75)
    assert Score.from_json(found.to_json()) == found
    fined = await score(constant("a", 1.0), penalty(unreadable, 0.25))
    assert (fined.lower, fined.upper) == (0.75, 1.0), "what may be a fault is one"
    closed = await score(gate(constant("safe", 0.0)), add(unreadable, 1))
    assert (closed.lower, closed.upper) == (0.0, 0.0)
    for unknown in (raises, constant("none", None)):
        pending = await score(constant("a", 1.0), unknown)
        assert (pending.lower, pending.upper) == (None, None)


async def test_a_stack_takes_the_bounds_of_its_checklist() -> None:
    half = ChecklistScorer(half_judged(), judge=sometimes)
    guess = trace(turn("Where?", say("There")), id="guess")
    found = await Stack(half, multiply(constant("care", 0.5)))(guess)
    assert (found.reward, found.upper) == (0.5, 0.5)
    assert found.lower == pytest.approx(0.45)
