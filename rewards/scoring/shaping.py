"""From satisfaction to reward: the arithmetic of Eq. 2, 3, 4 and 6 on one turn's matrix (docs/method.md §3–4).

Shapes: S steps, C items. `sat` is (S+1, C) bool, row 0 all false, row s what holds after step s. The first true step of
a column is its first true row (1…S), None where there is none. `deps[c]` are the columns that item c waits for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cm2_agent.types.checklist_item import Kind
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import NullCause, Verdict
from cm2_agent.types.score_bounds import UNKNOWN, Bounds

Matrix: TypeAlias = npt.NDArray[np.bool_]
Deps: TypeAlias = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class ItemColumn:
    """What is known of one item in one scope: satisfied at its end or not (None: nobody could tell), and from which row
    on.

    `first_true_step` is set exactly where `value` is true. `reason`, `cause` and `evidence` are as in Verdict.
    """

    value: bool | None
    first_true_step: int | None = None
    reason: str | None = None
    cause: NullCause | None = None
    explanation: str | None = None
    evidence: tuple[Mapping[str, JSON], ...] = ()


def first_true_step(values: Sequence[bool], kind: Kind, *, cut: bool = False) -> int | None:
    """The row from which the column is true, from the answers after each of the S steps; None where it never is.

    reach: the first step that answers yes, for good. hold: the last row, if the last answer is yes. avoid: the last
    row, if no answer is yes (a yes is the violation). `cut`: the scope ended early; hold and avoid items are false then
    (docs/method.md §2). A scope without steps has row 0 alone, which is false."""
    if kind == "reach":
        return next((row for row, yes in enumerate(values, 1) if yes), None)
    if cut or not values:
        return None
    good = values[-1] if kind == "hold" else not any(values)
    return len(values) if good else None


def matrix(flips: Sequence[int | None], steps: int) -> Matrix:
    """(S+1, C) from the flips. Raises ValueError for a flip outside 1…S."""
    for flip in flips:
        if flip is not None and not 1 <= flip <= steps:
            raise ValueError(f"a column turns true in row {flip}; expected a row of 1…{steps}")
    rows = np.arange(steps + 1)[:, None]
    return rows >= np.array([steps + 1 if flip is None else flip for flip in flips], dtype=np.int64)[None, :]


def first_true_steps(sat: Matrix) -> list[int | None]:
    """The flips of a matrix. Raises ValueError where row 0 is not all false, or a column turns false again."""
    sat = np.asarray(sat, dtype=bool)
    if sat.ndim != 2 or len(sat) == 0 or sat[0].any():
        raise ValueError(f"a satisfaction matrix is of shape {sat.shape}; expected (S+1, C) with a first row of false")
    if (sat[:-1] & ~sat[1:]).any():
        raise ValueError(
            "a column turns false again; reach columns stay true, hold and avoid columns are true in the last row only"
        )
    return [int(np.argmax(column)) if column.any() else None for column in sat.T]


def apply_dependencies(columns: Sequence[ItemColumn], deps: Deps) -> list[ItemColumn]:
    """The rule of dependants: an item with a prerequisite that is false at the end is false throughout, else with a
    NULL one NULL (false wins where both occur: the item cannot be true whatever the NULL hides). Applied along the
    dependencies, which form a DAG."""
    if not any(deps):
        return [_after(column, ()) for column in columns]
    done: list[ItemColumn | None] = [None] * len(columns)
    stack = list(range(len(columns)))
    while stack:
        at = stack[-1]
        if done[at] is not None:
            stack.pop()
            continue
        waiting = [parent for parent in deps[at] if done[parent] is None]
        if waiting:
            stack.extend(waiting)
            continue
        done[at] = _after(columns[at], [parent for parent in (done[index] for index in deps[at]) if parent is not None])
        stack.pop()
    return [column for column in done if column is not None]


def _after(column: ItemColumn, parents: Sequence[ItemColumn]) -> ItemColumn:
    if any(parent.value is False for parent in parents):
        return ItemColumn(value=False, reason="dependency")
    unknown = next((parent for parent in parents if parent.value is None), None)
    if unknown is not None:
        return ItemColumn(value=None, reason="dependency", cause=unknown.cause)
    return column if column.value or column.first_true_step is None else replace(column, first_true_step=None)


def _ready(sat: Matrix, deps: Deps) -> Matrix:
    """(S, C): all of c's prerequisites were true *before* the step."""
    ready = np.ones((len(sat) - 1, sat.shape[1]), dtype=bool)
    for item, parents in enumerate(deps):
        if parents:
            ready[:, item] = sat[:-1, list(parents)].all(axis=1)
    return ready


def payment(sat: Matrix, deps: Deps) -> Matrix:
    """Eq. 2, r (S, C): c is false before the step, true after it, and all its dependencies were true before it."""
    return ~sat[:-1] & sat[1:] & _ready(sat, deps)


def backfill(sat: Matrix, deps: Deps) -> Matrix:
    """Eq. 3, rb (S, C): dependencies true before the step, c false before it, c true after this or some later step."""
    later = np.logical_or.accumulate(sat[1:][::-1], axis=0)[::-1]
    return _ready(sat, deps) & ~sat[:-1] & later


def paid_items(first_true: Sequence[int | None], deps: Deps) -> list[bool]:
    """Eq. 2 summed over the steps, straight from the flips: paid iff it flips, strictly after every prerequisite
    has."""
    out = []
    for item, flip in enumerate(first_true):
        parents = [first_true[parent] for parent in deps[item]]
        out.append(flip is not None and all(parent is not None and parent < flip for parent in parents))
    return out


def normalised(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1. Raises ValueError where one is negative or not finite, or all are 0."""
    total = math.fsum(weights)
    if not math.isfinite(total) or total <= 0 or any(weight < 0 for weight in weights):
        raise ValueError(f"weights are {list(weights)}; expected numbers of 0 or more, one of them above 0")
    return [weight / total for weight in weights]


def turn_reward(paid: Sequence[float], weights: Sequence[float]) -> float:
    """Eq. 6: R_t = Σ_s Σ_c w_c r[s,c], in [0, 1] for weights that sum to 1. Each item is paid in one step at most, so
    `paid` says of each whether it was, or the share of its weight that was (soft dependencies)."""
    return min(1.0, math.fsum(weight * one for weight, one in zip(weights, paid, strict=True) if one))


def trajectory_reward(turn_rewards: Sequence[float], length: int) -> float:
    """Eq. 4: R = (1/L) Σ_t R_t; turns never reached may be left out of the sequence, they are 0. Raises ValueError for
    L < 1."""
    if length < 1 or len(turn_rewards) > length:
        raise ValueError(f"L is {length} for {len(turn_rewards)} turns; expected at least as many and 1")
    return min(1.0, math.fsum(turn_rewards) / length)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a turn adds to the stored reward: the weight of its NULLs, its reward over what was judged (None where
    nothing that weighs was), and its bounds, None where a verdict is pending. A turn in which nothing that weighs
    applies does not `count` in the reward."""

    missing: float
    reward: float | None
    bounds: Bounds | None
    counts: bool = True

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> Share:
        missing = math.fsum(one.weight for one in verdicts if one.pays is None)
        judged = math.fsum(one.weight for one in verdicts if one.pays is not None)
        earned = math.fsum(one.weight * one.pays for one in verdicts if one.pays is not None)
        return cls(
            missing=missing,
            reward=None if judged <= 0 else min(1.0, earned / (judged if missing else 1.0)),
            bounds=Bounds.of_turn(verdicts),
        )


def stored_reward(shares: Sequence[Share], *, tolerance: float = 0.2) -> float | None:
    """The stored reward (docs/method.md §4) of the L turns that these are the shares of, in [0, 1] or None. Turns that
    do not count are not among the L.

    The missing share is the weight of the NULLs over the L turns' whole weight, which is L. Up to `tolerance` each turn
    takes R_t = Σ paid w / Σ judged w, beyond it the reward is NULL. **Decision**: a turn of which nothing that weighs
    was judged has no R_t (0/0), so the reward is NULL too, however small the turn's share; a NULL of weight 0 is
    missing nothing."""
    counted = [share for share in shares if share.counts]
    if not counted or math.fsum(share.missing for share in counted) / len(counted) > tolerance + 1e-12:
        return None
    known = [share.reward for share in counted if share.reward is not None]
    return trajectory_reward(known, len(counted)) if len(known) == len(counted) else None


def stored_bounds(shares: Sequence[Share], in_full: Sequence[bool]) -> Bounds | None:
    """The bounds of the reward of these turns (docs/method.md §4), of which some are paid in full in the upper one and
    not at all in the lower one; None where a verdict is pending."""
    return Bounds.sum([UNKNOWN if full else share.bounds for share, full in zip(shares, in_full, strict=True)])
