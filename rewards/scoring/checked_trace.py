"""A trace whose checks have run, and what is remembered of it for when it has grown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import TurnScore
from cm2_agent.types.trace import Trace

from .ending import Ending
from .scored_turn import CheckedTurn
from .shaping import Share

if TYPE_CHECKING:
    from .plan import Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """The scores of a dialogue's first `turns` turns, to which nothing can be added any more, and what they add to the
    reward."""

    judge: Judge | None = None
    turns: int = 0
    scores: tuple[TurnScore, ...] = ()
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CheckedTrace:
    """A trace whose checks have run: the turns that count, in order, the closing block last, without those that are
    `settled`. `ending` is the trace's."""

    plan: Plan
    ending: Ending
    settled: Settled
    turns: list[CheckedTurn]

    def remember(self, trace: Trace, judge: Judge | None) -> None:
        """Keep the scores that last with the trace's turns, for when it has grown: each turn's, and together those of
        all turns but the last, which may go on."""
        for one in self.turns:
            if one.turn.turn is not None and one.lasts:
                trace.turns[one.turn.turn].memo[one.turn] = (judge, one)
        last = self.ending.turns - 1
        if not self.plan.is_open_ended(self.ending) or last <= self.settled.turns:
            return
        more = [one for one in self.turns if one.turn.turn is not None and one.turn.turn < last]
        if all(one.lasts for one in more):
            trace.turns[last - 1].memo[self.plan] = Settled(
                judge=judge,
                turns=last,
                scores=(*self.settled.scores, *(one.score for one in more if one.score is not None)),
                shares=(*self.settled.shares, *(one.share for one in more if one.share is not None)),
            )


__all__ = ["CheckedTrace", "Settled"]
