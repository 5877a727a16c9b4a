"""Payment at the flips is potential-based shaping by what has been paid so far: what of that holds, exactly, on a tree
of three steps with reach, hold and avoid items and a dependency."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pytest

from cm2_agent.rewards.scoring import shaping

Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
LOOK, ACT, BREAK = range(3)
STEPS = 3
LOGITS = {None: (0.4, 0.1, -0.3), LOOK: (-0.2, 0.7, 0.0), ACT: (0.3, 0.0, 0.2), BREAK: (0.1, -0.1, 0.5)}
"""The policy: a softmax by the step before."""
WEIGHTS = np.array([0.2, 0.3, 0.2, 0.3])
DEPS = ((), (0,), (), ())
"""looked (reach); acted (reach), which needs `looked` before it; whole at the end (hold); never broken (avoid)."""


def chances(last: int | None) -> Vector:
    exp = np.exp(np.array(LOGITS[last]))
    return np.asarray(exp / exp.sum())


@dataclass(frozen=True)
class Path:
    actions: tuple[int, ...]

    @property
    def lasts(self) -> tuple[int | None, ...]:
        return (None, *self.actions[:-1])

    @property
    def chance(self) -> float:
        return float(np.prod([chances(last)[one] for last, one in zip(self.lasts, self.actions, strict=True)]))

    @property
    def slopes(self) -> Vector:
        """(S, P) ∇ log π of each step, by state and choice."""
        states = list(LOGITS)
        found = np.zeros((STEPS, len(states), 3))
        for step, (last, one) in enumerate(zip(self.lasts, self.actions, strict=True)):
            found[step, states.index(last)] = -chances(last)
            found[step, states.index(last), one] += 1
        return found.reshape(STEPS, -1)

    @property
    def payment(self) -> Vector:
        """(S,) Σ_c w_c r[s, c]: Eq. 2 on the satisfaction matrix of the four items."""
        answers = (
            ([one == LOOK for one in self.actions], "reach"),
            ([one == ACT for one in self.actions], "reach"),
            ([one != BREAK for one in self.actions], "hold"),
            ([one == BREAK for one in self.actions], "avoid"),
        )
        flips = [shaping.first_true_step(yes, kind) for yes, kind in answers]  # type: ignore[arg-type]
        if flips[0] is None:
            flips[1] = None
        paid: Vector = np.asarray(shaping.payment(shaping.matrix(flips, STEPS), DEPS), dtype=np.float64) @ WEIGHTS
        return paid

    @property
    def potential(self) -> Vector:
        """(S + 1,) Φ: the weight that has been paid so far."""
        return np.concatenate([[0.0], np.cumsum(self.payment)])

    @property
    def outcome(self) -> float:
        """Another reward than the checklist's: the dialogue ends by acting."""
        return float(self.actions[-1] == ACT)


PATHS = tuple(Path(actions) for actions in itertools.product(range(3), repeat=STEPS))


def update(rewards: Callable[[Path], Sequence[float] | Vector]) -> Vector:
    """E[Σ_s ∇ log π_s Σ_{s' ≥ s} r_s']: the gradient of the expected sum of these rewards by step."""
    return np.sum([one.chance * np.cumsum(np.asarray(rewards(one))[::-1])[::-1] @ one.slopes for one in PATHS], axis=0)


def at_the_end(worth: Callable[[Path], float]) -> Callable[[Path], Vector]:
    return lambda one: np.array([0.0, 0.0, worth(one)])


def shaped(one: Path, *, terminal: bool) -> Vector:
    """The outcome at the end, and Φ(s') − Φ(s) at every step; Φ after the last is 0, or (`terminal`) what was paid."""
    potential = one.potential.copy()
    if not terminal:
        potential[-1] = 0.0
    return np.asarray(np.diff(potential) + np.array([0.0, 0.0, one.outcome]))


def test_the_tree_holds_each_case() -> None:
    assert sum(one.chance for one in PATHS) == pytest.approx(1, abs=1e-15)
    by_hand = {
        (LOOK, ACT, ACT): [0.2, 0.3, 0.5],
        (ACT, LOOK, ACT): [0.0, 0.2, 0.5],  # acted before it looked: never paid
        (LOOK, BREAK, ACT): [0.2, 0.0, 0.5],  # acted in the last step, whole again, but broken once
        (LOOK, ACT, BREAK): [0.2, 0.3, 0.0],
    }
    for actions, want in by_hand.items():
        assert Path(actions).payment == pytest.approx(want), actions


def test_payment_at_the_flips_telescopes_to_what_is_paid_at_the_end() -> None:
    for one in PATHS:
        assert np.diff(one.potential) == pytest.approx(one.payment, abs=1e-15)
        assert one.payment.sum() == pytest.approx(one.potential[-1], abs=1e-15), "the same return"
    found, end = update(lambda one: one.payment), update(at_the_end(lambda one: float(one.potential[-1])))
    np.testing.assert_allclose(found, end, rtol=0, atol=1e-12)
    assert np.abs(found).max() > 0.01, "a gradient of 0 would prove nothing"


def test_it_leaves_the_gradient_of_another_outcome_alone_only_where_the_last_potential_is_zero() -> None:
    outcome = update(at_the_end(lambda one: one.outcome))
    np.testing.assert_allclose(update(lambda one: shaped(one, terminal=False)), outcome, rtol=0, atol=1e-12)
    paid = update(lambda one: shaped(one, terminal=True))
    checklist = update(at_the_end(lambda one: float(one.potential[-1])))
    np.testing.assert_allclose(paid, outcome + checklist, rtol=0, atol=1e-12)
    assert np.abs(paid - outcome).max() > 0.01
