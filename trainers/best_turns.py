"""The best turns of a group: in which turns which rollouts earned the most, for imitation turn by turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Rollout
from cm2_agent.types.score import Score

from .advantage import require_alike
from .episodes import turn_reward
from .rows import Row

TIE = 1e-9
"""Turns that are worth the same but for rounding are both the best."""


def best_turns(rollouts: Sequence[Rollout]) -> list[frozenset[int]]:
    """For each rollout of a group the turns in which none earned more, and it something: R_t (Eq. 6), a NULL unpaid.

    Failed dialogues and those without a reward take no part. Raises TrainError where a reward is not of turns alone.
    """
    taking_part = [one.trace.failure is None and one.score.lower is not None for one in rollouts]
    scores = [one.score for one, part in zip(rollouts, taking_part, strict=True) if part]
    if not scores:
        return [frozenset()] * len(rollouts)
    for score in scores:
        _require_turns(score)
    require_alike(scores)
    best: dict[int, float] = {}
    for score in scores:
        for turn in score.turns:
            if turn.turn is not None:
                best[turn.turn] = max(best.get(turn.turn, 0.0), turn_reward(turn))
    return [
        frozenset(
            turn.turn
            for turn in rollout.score.turns
            if part and turn.turn is not None and turn.reached and 0 < best[turn.turn] <= turn_reward(turn) + TIE
        )
        for rollout, part in zip(rollouts, taking_part, strict=True)
    ]


def turns_alone(rows: Iterable[Row], turns: frozenset[int]) -> list[Row]:
    """The rows with the tokens of these turns trained and those of all others masked; without rows that have none."""
    kept = (replace(row, spans=tuple(span for span in row.spans if span.turn in turns)) for row in rows)
    return [row for row in kept if row.spans]


def _require_turns(score: Score) -> None:
    block = next((turn for turn in score.turns if turn.turn is None), None)
    if score.turns and not score.components and block is None:
        return
    if score.components:
        why = "has the components of a stack"
    elif block is not None:
        why = f"has a closing block ({', '.join(one.item for one in block.verdicts)}), which no turn alone earns"
    else:
        why = "has no turns"
    raise TrainError(
        f"select='best-turn' chooses turns by what each earned, and the score of trace {score.trace_id!r} {why};"
        " expected a checklist whose items all belong to turns: take select='best'"
    )


__all__ = ["best_turns", "turns_alone"]
