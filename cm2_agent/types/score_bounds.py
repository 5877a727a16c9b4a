"""Bounds of a reward over what nobody could tell: the smallest and the largest that the missing verdicts allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm2_agent.types.score import TurnScore, Verdict


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a reward is at least and at most, each in [0, 1], however its policy-caused NULLs would have been judged.
    `lower` pays none of them, `upper` all.

    >>> Bounds.sum([Bounds(lower=0.5, upper=1.0), Bounds(lower=1.0, upper=1.0)])
    Bounds(lower=0.75, upper=1.0)
    """

    lower: float
    upper: float

    @classmethod
    def of_turn(cls, verdicts: Iterable[Verdict]) -> Bounds | None:
        """The bounds of R_t; None where a verdict that weighs is pending."""
        known, unknown = [], []
        for verdict in verdicts:
            if verdict.pays is not None:
                known.append(verdict.weight * verdict.pays)
            elif not verdict.weight:
                continue
            elif verdict.cause == "content":
                unknown.append(verdict.weight)
            else:
                return None
        lower = min(1.0, math.fsum(known))
        return cls(lower=lower, upper=min(1.0, math.fsum((lower, *unknown))))

    @classmethod
    def sum(cls, turns: Sequence[Bounds | None]) -> Bounds | None:
        """The bounds of R from those of its L turns (Eq. 4); None where there are none, or those of a turn are not
        known."""
        known = [turn for turn in turns if turn is not None]
        if not turns or len(known) < len(turns):
            return None
        return cls(
            lower=min(1.0, math.fsum(turn.lower for turn in known) / len(turns)),
            upper=min(1.0, math.fsum(turn.upper for turn in known) / len(turns)),
        )


IN_FULL = 1 - 1e-9
"""A reward, or an outcome, from here on is 1, but for rounding."""
UNKNOWN = Bounds(lower=0.0, upper=1.0)
"""Those of a turn of which nothing is known."""


def bounds_of(
    reward: float | None, null_reason: str | None, turns: Sequence[TurnScore], *, components: bool = False
) -> Bounds | None:
    """The bounds of a score that was stored without them; None where there are none (docs/method.md §4).

    With `components` the reward is more than its verdicts, so they are the reward where no verdict is NULL."""
    if not turns or components:
        whole = all(verdict.pays is not None or not verdict.weight for turn in turns for verdict in turn.verdicts)
        return Bounds(lower=reward, upper=reward) if reward is not None and whole else None
    if null_reason in (None, "verdicts"):
        return Bounds.sum([Bounds.of_turn(turn.verdicts) for turn in turns])
    if null_reason == "censored" or (null_reason == "gate undecided" and _undecided_by_policy(turns)):
        return _bounds_behind_gate(turns)
    return None


def _bounds_behind_gate(turns: Sequence[TurnScore]) -> Bounds | None:
    """Those of a dialogue that a gate ended without a verdict of the checklist against it: what it never reached is
    unpaid in the lower one and paid in full in the upper."""
    return Bounds.sum([Bounds.of_turn(turn.verdicts) if turn.reached else UNKNOWN for turn in turns])


def _undecided_by_policy(turns: Sequence[TurnScore]) -> bool:
    """Whether all that is missing of the last turn that was reached is so by the policy's doing. Which of its items are
    strict is not stored."""
    last = next((turn for turn in reversed(turns) if turn.reached and turn.turn is not None), None)
    missing = [] if last is None else [one.cause for one in last.verdicts if one.value is None]
    return bool(missing) and set(missing) == {"content"}


__all__ = ["IN_FULL", "UNKNOWN", "Bounds", "bounds_of"]
