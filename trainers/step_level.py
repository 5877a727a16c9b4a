"""The paper's step level: advantages over the items that could still be earned at a step (CM2, arXiv 2602.12268, Eq. 3
and 8–10), and what the tables of all levels are made of.

Notation: G rollouts that reached a turn, S steps of the turn, C its items, whose weights sum to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cm2_agent.types.score import Score, TurnScore, Verdict

Norm: TypeAlias = Literal["none", "std"]
Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Table: TypeAlias = dict[int, list[float]]
"""By dialogue turn, the advantage of each of its steps."""
Lengths: TypeAlias = Sequence[Sequence[int] | None]

_EPSILON = 1e-6
_NEVER = np.inf


def fnorm(values: Floats, norm: Norm) -> float:
    """Fnorm of docs/method.md §5: 1, or the population standard deviation + 1e-6."""
    return 1.0 if norm == "none" or not values.size else float(values.std()) + _EPSILON


def number_of(turn: TurnScore) -> int:
    assert turn.turn is not None, "a closing block was refused before"
    return turn.turn


def has_open_step(verdict: Verdict) -> bool:
    """Whether a NULL leaves open when a satisfied item was: it is any of several, and another of them is NULL."""
    return bool(verdict.value) and verdict.reason == "any_of"


def step_level(scores: Sequence[Score], norm: Norm, _lengths: Lengths) -> list[Table]:
    """Eq. 8–10 with Eq. 3's backfill: the weighted mean of (what is paid − mean)/Fnorm over the items that could still
    be earned at the step. Where a NULL leaves open which items these are, the least that they allow."""
    tables: list[Table] = [{} for _ in scores]
    for at in range(scores[0].length if scores else 0):
        reached = [index for index, score in enumerate(scores) if score.turns[at].reached]
        if not reached:
            continue
        pays_GC = np.array([_pays(scores[index].turns[at]) for index in reached])
        mean_C, norm_C = pays_GC.mean(axis=0), np.array([fnorm(column, norm) for column in pays_GC.T])
        for index, pays_C in zip(reached, pays_GC, strict=True):
            turn = scores[index].turns[at]
            eligible_SC, open_SC = _eligible(turn)
            weights_C = np.array([one.weight for one in turn.verdicts], dtype=np.float64)
            terms_C = (pays_C - mean_C) / norm_C
            tables[index][number_of(turn)] = [
                _least_mean(terms_C, weights_C, eligible_C, open_C)
                for eligible_C, open_C in zip(eligible_SC, open_SC, strict=True)
            ]
    return tables


def _pays(turn: TurnScore) -> list[float]:
    return [one.pays or 0.0 for one in turn.verdicts]


def _eligible(turn: TurnScore) -> tuple[Bools, Bools]:
    """Two (S, C): the items that could be earned at the step, their hard dependencies true and themselves false before
    it; and those of which a NULL leaves that open. A NULL that hides a pass has its own step, and lets its dependants
    be earned from the next one on; what is any of several, with a NULL among them, may have been satisfied earlier."""
    flips_C = np.array([_NEVER if one.step is None else one.step for one in turn.verdicts], dtype=np.float64)
    null_C = np.array([one.pays is None or has_open_step(one) for one in turn.verdicts], dtype=bool)
    before_S1 = np.arange(turn.steps)[:, None]  # the row before step s, counted from 1, is s − 1
    ready_SC = np.ones((turn.steps, len(flips_C)), dtype=bool)
    certain_SC = np.broadcast_to(~null_C, ready_SC.shape).copy()
    for item, verdict in enumerate(turn.verdicts):
        soft = verdict.soft or (0.0,) * len(verdict.depends_on)
        for parent in (one for one, share in zip(verdict.depends_on, soft, strict=True) if not share):
            ready_SC[:, item] &= null_C[parent] | (flips_C[parent] <= before_S1[:, 0])
            certain_SC[:, item] &= ~null_C[parent]
    reachable_SC = ready_SC & (flips_C > before_S1)
    return reachable_SC & certain_SC, reachable_SC & ~certain_SC


def _least_mean(terms_C: Floats, weights_C: Floats, eligible_C: Bools, open_C: Bools) -> float:
    """The weighted mean of the eligible terms, with those of the open ones that lower it; 0 where there is none."""
    weight = float(weights_C[eligible_C].sum())
    total = float(terms_C[eligible_C] @ weights_C[eligible_C])
    least = total / weight if weight > 0 else 0.0
    for item in sorted(np.flatnonzero(open_C & (weights_C > 0)), key=lambda item: terms_C[item]):
        if not terms_C[item] < least:
            break
        weight, total = weight + float(weights_C[item]), total + float(terms_C[item] * weights_C[item])
        least = total / weight
    return least


__all__ = ["Bools", "Floats", "Lengths", "Norm", "Table", "fnorm", "has_open_step", "number_of", "step_level"]
