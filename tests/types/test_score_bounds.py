"""The bounds of a reward: what policy-caused NULLs leave open, and where there are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.score import Score, TurnScore, Verdict

STATES: dict[str, dict[str, Any]] = {
    "paid": {"value": True, "paid": True, "step": 1},
    "early": {"value": True, "paid": False, "step": 1},
    "failed": {"value": False, "paid": False},
    "policy": {"value": None, "cause": "content"},
    "pending": {"value": None, "cause": "infrastructure"},
}


def score(*turns: list[str], reward: float | None = None, **more: Any) -> Score:
    made = tuple(
        TurnScore(
            turn=at,
            reached=True,
            steps=1,
            reward=None,
            verdicts=tuple(
                Verdict(item=str(number), weight=1 / len(states), **STATES[state])
                for number, state in enumerate(states)
            ),
        )
        for at, states in enumerate(turns)
    )
    return Score(trace_id="t", reward_version="v", reward=reward, turns=made, **more)


@pytest.mark.parametrize(
    ("turns", "bounds"),
    [
        ([["paid", "failed"]], (0.5, 0.5)),
        ([["paid", "policy"]], (0.5, 1.0)),
        ([["policy", "policy"], ["paid", "early"]], (0.25, 0.75)),
        ([["paid", "pending"]], (None, None)),
        ([["policy", "pending"]], (None, None)),
    ],
)
def test_bounds_by_hand(turns: list[list[str]], bounds: tuple[float | None, float | None]) -> None:
    made = score(*turns, reward=0.5)
    assert (made.lower, made.upper) == bounds
    assert made.pending == (bounds[0] is None)
    assert Score.from_json(made.to_json()) == made


def test_a_reward_without_verdicts_is_its_own_bounds() -> None:
    plain = Score(trace_id="t", reward_version="v", reward=0.25)
    assert (plain.lower, plain.upper) == (0.25, 0.25)
    assert replace(plain, reward=0.75).lower == 0.75
    assert replace(plain, reward=None, null_reason="censored").lower is None


def test_a_null_of_weight_0_leaves_nothing_open() -> None:
    verdicts = (Verdict(item="a", weight=1.0, **STATES["paid"]), Verdict(item="b", weight=0.0, **STATES["pending"]))
    turn = TurnScore(turn=0, reached=True, steps=1, reward=None, verdicts=verdicts)
    made = Score(trace_id="t", reward_version="v", reward=1.0, turns=(turn,))
    assert (made.lower, made.upper, made.pending) == (1.0, 1.0, False)


@pytest.mark.parametrize("reason", ["no turn", "no checklist", "failure: crash"])
def test_what_means_nothing_has_no_bounds(reason: str) -> None:
    made = score(["paid"], null_reason=reason)
    assert (made.lower, made.upper) == (None, None)
    assert made.pending == reason.startswith("failure")


GATE: dict[str, Any] = {"value": False, "paid": False, "reason": "gate"}


@pytest.mark.parametrize(
    ("reason", "last", "bounds"),
    [
        ("censored", ["paid", "failed"], (0.25, 0.75)),
        ("censored", ["paid", "policy"], (0.25, 1.0)),
        ("censored", ["paid", "pending"], (None, None)),
        ("gate undecided", ["paid", "policy"], (0.25, 1.0)),
        ("gate undecided", ["policy", "policy"], (0.0, 1.0)),
        ("gate undecided", ["policy", "pending"], (None, None)),
        ("gate undecided", ["paid", "paid"], (None, None)),  # what left it undecided is no verdict of this score
    ],
)
def test_behind_a_gate_nothing_is_paid_or_all(
    reason: str, last: list[str], bounds: tuple[float | None, float | None]
) -> None:
    behind = TurnScore(turn=1, reached=False, steps=0, reward=0.0, verdicts=(Verdict(item="0", weight=1.0, **GATE),))
    reached = score(last).turns[0]
    made = Score(trace_id="t", reward_version="v", reward=None, turns=(reached, behind), null_reason=reason)
    assert (made.lower, made.upper) == bounds
    assert made.pending == (bounds[0] is None)
    assert Score.from_json(made.to_json()) == made


@given(st.lists(st.lists(st.sampled_from(sorted(set(STATES) - {"pending"})), min_size=1, max_size=4), min_size=1))
def test_whatever_a_judge_would_have_said_lies_within(turns: list[list[str]]) -> None:
    made = score(*turns)
    assert made.lower is not None
    assert made.upper is not None
    for answer in ("paid", "failed"):
        told = score(*[[answer if state == "policy" else state for state in states] for states in turns])
        assert made.lower - 1e-12 <= told.lower <= made.upper + 1e-12  # type: ignore[operator]  # a number: no NULLs
