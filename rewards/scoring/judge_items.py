"""The judge's part of a scope: which items it is asked, and what its reply becomes; apart from any judge, which is a
plug.

A judge's failure is never a score: an exception, a missing or doubled verdict, an unknown id or a flip outside the
scope's steps gives NULL with cause `infrastructure`. Verdicts are taken by item id, never by their place in the reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cm2_agent.errors import BudgetExhausted
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import Verdict
from cm2_agent.types.trace import Trace

from .plan import Scope
from .shaping import Column, settled


def open_items(columns: Sequence[Column | None], deps: Sequence[Sequence[int]]) -> list[int]:
    """The items to ask a judge: those without a column (None) that hang on no item already known to be false or
    NULL."""
    hopeful = [Column(value=True, flip=1) if column is None else column for column in columns]
    after = settled(hopeful, deps)
    return [index for index, column in enumerate(columns) if column is None and after[index].value]


async def ask(judge: Judge, trace: Trace, scope: Scope, indices: Sequence[int], steps: int) -> dict[int, Column]:
    """One call of the judge for a scope's open items; a column for each of them. Raises BudgetExhausted where it may
    not be asked."""
    items = [scope.items[index] for index in indices]
    try:
        reply = await judge(trace, scope.turn, items)
        verdicts = _by_id(reply, items)
    except BudgetExhausted:  # it was not asked, so it has not failed either: the trace is scored another time
        raise
    except Exception as error:  # a judge that fails, in whatever way, has not judged
        lost = _null(f"the judge raised {type(error).__name__}: {str(error)[:200]}")
        return dict.fromkeys(indices, lost)
    return {index: _column(verdicts.get(item.id), item, steps) for index, item in zip(indices, items, strict=True)}


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


def _column(verdict: Verdict | str | None, item: Item, steps: int) -> Column:
    """A verdict as a column. A satisfied reach item without a step counts from the last one: the latest that its
    verdict allows."""
    if verdict is None:
        return _null("the judge gave no verdict on the item")
    if isinstance(verdict, str):
        return _null(verdict)
    if verdict.value is None:
        return Column(
            value=None,
            reason=verdict.reason,
            cause=verdict.cause or "infrastructure",
            explanation=verdict.explanation,
            evidence=verdict.evidence,
        )
    if not isinstance(verdict.value, bool):
        return _null(f"the judge's verdict is {verdict.value!r}; expected true, false or nothing")
    flip = None
    if verdict.value:
        flip = steps if item.kind != "reach" or verdict.step is None else verdict.step
        if not isinstance(flip, int) or not 1 <= flip <= steps:
            return _null(f"the judge says the item holds from step {verdict.step!r}; expected a step of 1…{steps}")
    return Column(
        value=verdict.value,
        flip=flip,
        reason=verdict.reason,
        explanation=verdict.explanation,
        evidence=verdict.evidence,
    )


def _null(explanation: str) -> Column:
    return Column(value=None, reason="judge failed", cause="infrastructure", explanation=explanation)
