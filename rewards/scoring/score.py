"""From a trace's checked and judged turns to its Score: dependencies, payments, rewards, and why there may be none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.score_bounds import Bounds
from cm2_agent.types.trace import Trace

from .checked_trace import CheckedTrace
from .ending import Ending
from .payments import REST, Links, Outcome, settle
from .scored_turn import CheckedTurn, ScoredTurn
from .shaping import ItemColumn, Share, stored_bounds, stored_reward, turn_reward


def add_up(trace: Trace, checked: CheckedTrace, *, version: str, tolerance: float) -> Score:
    """The trace's score with its turns, and the reward or the reason why it is NULL. Every column must be known by now,
    and is summed up in the checked turns."""
    settled, checklist = checked.settled, checked.plan.checklist
    turns = (*settled.scores, *map(turn_score, checked.turns))
    shares = (*settled.shares, *(turn.share for turn in checked.turns if turn.share is not None))
    reason = null_reason(checklist, checked.ending, turns)
    if reason is None and not any(share.counts for share in shares):
        reason = "no turn"
    whole = _paid_in_full(reason, checked, turns)
    reward = stored_reward(shares, tolerance=tolerance)
    bounds = None if whole is None else stored_bounds(shares, whole)
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


def _paid_in_full(reason: str | None, checked: CheckedTrace, turns: Sequence[TurnScore]) -> list[bool] | None:
    """Of each turn whether the upper bound pays it in full and the lower one nothing (docs/method.md §4); None for a
    score without bounds. A gate that policy-caused NULLs left undecided is unsatisfied in the lower bound, which pays
    nothing of the turns behind it, and satisfied in the upper; so is one of another checklist that ended the
    dialogue."""
    if reason is None:
        return [False] * len(turns)
    if reason == "censored":
        return [not turn.reached for turn in turns]
    if reason != "gate undecided":
        return None
    ending = checked.ending
    at = _score_of(turns, ending.turns - 1 if ending.gate is None else ending.gate)
    if at is None or _passes(checked.plan.checklist, at) is True:  # what closed it was no verdict of this score
        return None
    return [not turn.reached for turn in turns]


def turn_score(checked: CheckedTurn) -> TurnScore:
    """A turn's verdicts and, where each is known, its reward (Eq. 6). The verdicts on its items come first, then a
    judge's on whether some of them apply."""
    if checked.score is not None:
        return checked.score
    turn = checked.turn
    columns = [column for column in checked.columns if column is not None]
    if checked.reached:
        outcomes = _open_steps(turn.links, settle(columns[: turn.size], turn.links))
    else:
        waits = zip(columns, turn.links.deps, turn.links.soft, strict=False)
        outcomes = [Outcome(column=column, payment=0.0, deps=deps, soft=soft) for column, deps, soft in waits]
    left_out = [not one.applies and one.column.value is None for one in outcomes]
    weights = _weights(turn, left_out)
    counts = any(weights)
    verdicts = (
        *map(_verdict, turn.items, outcomes, weights),
        *(_condition(turn.items[at], columns[at]) for at in turn.conditions.values() if turn.checks[at] is None),
    )
    whole = all(one.column.value is not None or out for one, out in zip(outcomes, left_out, strict=True))
    reward = turn_reward([one.payment for one in outcomes], weights) if whole and counts else None
    share = Share.of(verdicts)
    if any(left_out) or not turn.links.plain:
        share = replace(share, counts=counts, bounds=_turn_bounds(turn, columns, outcomes))
    checked.share = share
    checked.score = TurnScore(
        turn=turn.turn, reached=checked.reached, steps=checked.steps, reward=reward, verdicts=verdicts
    )
    return checked.score


def _open_steps(links: Links, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcomes, with the reason `any_of` on each that is satisfied by one of its items while another is NULL by the
    policy's doing: that one may have paid it earlier."""
    if not any(links.any_of):
        return outcomes
    found = list(outcomes)
    for at in links.order:
        others = [found[child].column for child in links.any_of[at]]
        hidden = any(one.cause == "content" if one.value is None else one.reason == REST.reason for one in others)
        if hidden and found[at].column.value:
            found[at] = replace(found[at], column=replace(found[at].column, reason=REST.reason))
    return found


def _weights(turn: ScoredTurn, left_out: Sequence[bool]) -> Sequence[float]:
    """The items' weights, those of the items that are left out shared among the others."""
    own = turn.weights[: turn.size]
    if not any(left_out):
        return own
    total = math.fsum(weight for weight, out in zip(own, left_out, strict=True) if not out)
    return [0.0 if out or not total else weight / total for weight, out in zip(own, left_out, strict=True)]


def _verdict(item: Item, outcome: Outcome, weight: float) -> Verdict:
    column, payment = outcome.column, outcome.payment
    return Verdict(
        item=item.id,
        value=column.value,
        weight=weight,
        step=column.first_true_step,
        paid=None if column.value is None else payment > 0,
        payment=payment if 0 < payment < 1 else None,
        depends_on=outcome.deps,
        soft=outcome.soft if any(outcome.soft) else (),
        reason=column.reason,
        cause=column.cause,
        explanation=column.explanation,
        evidence=column.evidence,
    )


def _condition(item: Item, column: ItemColumn) -> Verdict:
    """The judge's verdict on whether an item applies, which weighs nothing."""
    if column.value is not None and column.reason is None:
        column = replace(column, reason="when")
    return _verdict(item, Outcome(column=column, payment=float(column.value or 0)), 0.0)


def _turn_bounds(turn: ScoredTurn, columns: Sequence[ItemColumn], outcomes: Sequence[Outcome]) -> Bounds | None:
    """The bounds of R_t (docs/method.md §4) by the items' own weights, of which an item that is left out has its too:
    unpaid in the lower one, paid in the upper. In the upper one the policy-caused NULLs are paid, and were in time for
    all that waits for them."""
    weighed = list(zip(turn.weights, outcomes, strict=False))
    if any(weight and one.pending for weight, one in weighed):
        return None
    links = turn.links
    loose = {at for at, one in enumerate(outcomes) if one.column.value is None and not links.any_of[at]}
    resting = {at for at, one in enumerate(outcomes) if one.column.value and not loose.isdisjoint(links.any_of[at])}
    best = settle(
        [
            ItemColumn(value=True, first_true_step=0) if at in loose else column
            for at, column in enumerate(columns[: turn.size])
        ],
        Links(
            deps=tuple(() if at in loose | resting else deps for at, deps in enumerate(links.deps)),
            soft=tuple(() if at in loose | resting else soft for at, soft in enumerate(links.soft)),
            any_of=links.any_of,
        ),
    )
    known = math.fsum(weight * one.payment for weight, one in weighed)
    most = math.fsum(
        weight * (1.0 if one.column.value is None else max(one.payment, top.payment))
        for (weight, one), top in zip(weighed, best, strict=True)
    )
    return Bounds(lower=min(1.0, known), upper=min(1.0, most))


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
    ended = ending.limited or ending.crashed
    if not ended and ending.planned is not None and ending.turns < ending.planned and last is not None:
        return "gate undecided" if _passes(checklist, last) is None else None
    return None


def _score_of(turns: Sequence[TurnScore], index: int) -> TurnScore | None:
    return next((turn for turn in reversed(turns) if turn.turn == index), None)


def _passes(checklist: Checklist, turn: TurnScore) -> bool | None:
    """What this checklist's gate says after a scored turn."""
    return passes([checklist.by_id.get(verdict.item) for verdict in turn.verdicts], turn.verdicts)


def passes(items: Sequence[Item | None], verdicts: Sequence[Verdict]) -> bool | None:
    """What the gate says after the turn of these items and verdicts: false where a strict item is, else None where one
    is NULL. One that does not apply asks for nothing."""
    values = [
        verdict.value
        for item, verdict in zip(items, verdicts, strict=False)
        if item is not None and item.required_for_next_turn and verdict.applies
    ]
    return False if False in values else None if None in values else True


__all__ = ["add_up", "null_reason", "passes", "turn_score"]
