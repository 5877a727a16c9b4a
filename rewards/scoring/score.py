"""From a trace's checked and judged turns to its Score: dependencies, payments, rewards, and why there may be none."""

from __future__ import annotations

from collections.abc import Sequence

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.score_bounds import Bounds, bounds_behind_gate
from cm2_agent.types.trace import Trace

from .ending import Ending
from .plan import CheckedTrace, CheckedTurn
from .shaping import Share, apply_dependencies, paid_items, stored_reward, turn_reward


def add_up(trace: Trace, checked: CheckedTrace, *, version: str, tolerance: float) -> Score:
    """The trace's score with its turns, and the reward or the reason why it is NULL. Every column must be known by now,
    and is summed up in the checked turns."""
    settled, checklist = checked.settled, checked.plan.checklist
    turns = (*settled.scores, *map(turn_score, checked.turns))
    reason = null_reason(checklist, checked.ending, turns)
    shares = (*settled.shares, *(turn.share for turn in checked.turns if turn.share is not None))
    reward = stored_reward(shares, tolerance=tolerance)
    bounds = _bounds(reason, checked, turns, shares)
    return Score(
        trace_id=trace.id,
        reward_version=version,
        reward=None if reason else reward,
        checklist=checklist.hash,
        runs=len(trace.runs),
        null_reason=reason or ("verdicts" if reward is None else None),
        turns=turns,
        lower=None if bounds is None else bounds.lower,
        upper=None if bounds is None else bounds.upper,
    )


def _bounds(
    reason: str | None, checked: CheckedTrace, turns: Sequence[TurnScore], shares: Sequence[Share]
) -> Bounds | None:
    """The bounds of the reward (docs/method.md §4). A gate that policy-caused NULLs left undecided is unsatisfied in
    the lower one, which pays nothing of the turns behind it, and satisfied in the upper, which pays them in full; so is
    one of another checklist that ended the dialogue."""
    if reason is None:
        return Bounds.sum([share.bounds for share in shares])
    if reason == "censored":
        return bounds_behind_gate(turns)
    if reason != "gate undecided":
        return None
    ending, by_id = checked.ending, checked.plan.checklist.by_id
    at = _score_of(turns, ending.turns - 1 if ending.gate is None else ending.gate)
    strict = [] if at is None else [one for one in at.verdicts if by_id[one.item].required_for_next_turn]
    if all(one.value is True for one in strict):  # what closed it was no verdict of this score
        return None
    return bounds_behind_gate(turns)


def turn_score(checked: CheckedTurn) -> TurnScore:
    """A turn's verdicts and, where each is known, its reward (Eq. 6)."""
    if checked.score is not None:
        return checked.score
    turn = checked.turn
    columns = [column for column in checked.columns if column is not None]
    if checked.reached:
        columns = apply_dependencies(columns, turn.deps)
    paid = paid_items([column.first_true_step for column in columns], turn.deps)
    verdicts = tuple(
        Verdict(
            item=item.id,
            value=column.value,
            weight=weight,
            step=column.first_true_step,
            paid=None if column.value is None else one,
            depends_on=deps,
            reason=column.reason,
            cause=column.cause,
            explanation=column.explanation,
            evidence=column.evidence,
        )
        for item, column, weight, deps, one in zip(turn.items, columns, turn.weights, turn.deps, paid, strict=True)
    )
    whole = all(column.value is not None for column in columns)
    reward = turn_reward(paid, turn.weights) if whole else None
    checked.share = Share.of(verdicts)
    checked.score = TurnScore(
        turn=turn.turn, reached=checked.reached, steps=checked.steps, reward=reward, verdicts=verdicts
    )
    return checked.score


def null_reason(checklist: Checklist, ending: Ending, turns: Sequence[TurnScore]) -> str | None:
    """Why the trace has no reward whatever its verdicts say (the reasons are listed in scorer.py), None where it may
    have one."""
    if not turns or (not ending.turns and ending.unreached == "unreached"):
        return "no turn"
    if ending.undecided:
        return "gate undecided"
    if ending.gate is not None:
        if ending.gated_by == checklist.hash:
            return None
        at = _score_of(turns, ending.gate)
        passed = True if at is None else _passes(checklist, at)
        return None if passed is False else "censored" if passed else "gate undecided"
    last = _score_of(turns, ending.turns - 1)
    if not ending.limited and ending.planned is not None and ending.turns < ending.planned and last is not None:
        return "gate undecided" if _passes(checklist, last) is None else None
    return None


def _score_of(turns: Sequence[TurnScore], index: int) -> TurnScore | None:
    return next((turn for turn in reversed(turns) if turn.turn == index), None)


def _passes(checklist: Checklist, turn: TurnScore) -> bool | None:
    """What this checklist's gate says after a scored turn."""
    by_id = checklist.by_id
    return all_true([verdict.value for verdict in turn.verdicts if by_id[verdict.item].required_for_next_turn])


def all_true(values: Sequence[bool | None]) -> bool | None:
    """False where one is, else None where one is NULL."""
    return False if False in values else None if None in values else True


__all__ = ["add_up", "all_true", "null_reason", "turn_score"]
