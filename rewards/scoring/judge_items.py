"""The judge's part of a turn: it is asked the open items, and its reply becomes their columns.

A judge's failure is never a score: an exception, a missing or doubled verdict, an unknown id or a first true step
outside the turn gives NULL with cause `infrastructure`. Verdicts are taken by item id, never by their place in the
reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cm2_agent.errors import BudgetExhausted
from cm2_agent.llm.usage import metered
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import Verdict
from cm2_agent.types.secrets import error_text
from cm2_agent.types.trace import Trace

from ..judges.judge_pass import JudgeAttempt, Slot
from .scored_turn import CheckedTurn
from .shaping import ItemColumn

FAILED = "judge failed"
_NO_JUDGE = ItemColumn(
    value=None, reason="no judge", cause="infrastructure", explanation="the item is a question and no judge was given"
)


async def ask_judge(
    judge: Judge | None, trace: Trace, turns: Sequence[CheckedTurn], attempt: JudgeAttempt | None = None
) -> None:
    """One call of the judge for each turn with open items, whose columns it fills; a second one for items of which the
    first found that they apply. Within a pass over traces (judge_pass.py), what earlier attempts answered is not asked
    again. Raises BudgetExhausted where it may not be asked."""
    if judge is None:
        leave_unjudged(turns)
        return
    for turn in turns:
        while asked := turn.asked:
            await _ask(judge, trace, turn, asked, attempt)
            turn.close()


def leave_unjudged(turns: Sequence[CheckedTurn]) -> None:
    """Fill the open columns of turns for which there is no judge."""
    for turn in turns:
        turn.columns[:] = [_NO_JUDGE if column is None else column for column in turn.columns]
        turn.close()


async def _ask(
    judge: Judge, trace: Trace, checked: CheckedTurn, places: Sequence[int], attempt: JudgeAttempt | None
) -> None:
    if attempt is not None and not attempt.judged:
        for index in places:
            checked.columns[index] = _null("the judge was not asked")
        return
    waiting = []
    for index in places:
        found = None if attempt is None else _known(attempt, _slot(judge, checked, index))
        if found is None:
            waiting.append(index)
        checked.columns[index] = found
    if not waiting:
        return
    items = [checked.turn.items[index] for index in waiting]
    with metered() as usage:
        try:
            reply = await judge(trace, checked.turn.turn, items)
            verdicts = _by_id(reply, items)
        except BudgetExhausted:  # it was not asked, so it has not failed either: the trace is scored another time
            raise
        except Exception as error:  # a judge that fails, in whatever way, has not judged
            verdicts = dict.fromkeys(
                (item.id for item in items), f"the judge raised {type(error).__name__}: {error_text(error)}"
            )
    asked = usage.calls > 0 or not usage.cached  # a judge that counts neither was asked
    for index, item in zip(waiting, items, strict=True):
        column = checked.columns[index] = _column(verdicts.get(item.id), item, checked.steps)
        if attempt is not None:
            failed = column.reason == FAILED and column.cause == "infrastructure"
            attempt.note(_slot(judge, checked, index), column, failed=failed, asked=asked)


def _slot(judge: Judge, checked: CheckedTurn, index: int) -> Slot:
    return id(judge), checked.turn.turn, checked.turn.items[index].id


def _known(attempt: JudgeAttempt, slot: Slot) -> ItemColumn | None:
    """What earlier attempts at the trace have shown: the answer, or that the failure is the trace's."""
    if slot in attempt.blamed:
        return ItemColumn(value=None, reason=FAILED, cause="content", explanation=str(attempt.blamed[slot]))
    found: ItemColumn | None = attempt.known.get(slot)
    return found


def _by_id(reply: Sequence[Verdict], items: Sequence[Item]) -> Mapping[str, Verdict | str]:
    """Each asked item's verdict, or the sentence that says what is wrong with it."""
    asked = {item.id for item in items}
    unknown = sorted({verdict.item for verdict in reply} - asked)
    if unknown:
        # a judge that speaks of other items may have mixed them up, so none of its verdicts can be trusted
        return dict.fromkeys(asked, f"the judge gave verdicts on unknown items: {', '.join(unknown)}")
    found: dict[str, Verdict | str] = {}
    for verdict in reply:
        found[verdict.item] = "the judge gave two verdicts on the item" if verdict.item in found else verdict
    return found


def _column(verdict: Verdict | str | None, item: Item, steps: int) -> ItemColumn:
    """A verdict as a column. A satisfied reach item without a step counts from the last one: the latest that its
    verdict allows."""
    if verdict is None:
        return _null("the judge gave no verdict on the item")
    if isinstance(verdict, str):
        return _null(verdict)
    if verdict.value is None:
        return ItemColumn(
            value=None,
            reason=verdict.reason,
            cause=verdict.cause or "infrastructure",
            explanation=verdict.explanation,
            evidence=verdict.evidence,
        )
    if not isinstance(verdict.value, bool):
        return _null(f"the judge's verdict is {verdict.value!r}; expected true, false or nothing")
    step = None
    if verdict.value:
        step = steps if item.kind != "reach" or verdict.step is None else verdict.step
        if not isinstance(step, int) or not 1 <= step <= steps:
            return _null(f"the judge says the item holds from step {verdict.step!r}; expected a step of 1…{steps}")
    return ItemColumn(
        value=verdict.value,
        first_true_step=step,
        reason=verdict.reason,
        explanation=verdict.explanation,
        evidence=verdict.evidence,
    )


def _null(explanation: str) -> ItemColumn:
    return ItemColumn(value=None, reason=FAILED, cause="infrastructure", explanation=explanation)


__all__ = ["ask_judge", "leave_unjudged"]
