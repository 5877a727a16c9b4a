"""Applicability: what decides whether an item applies, and what one that does not is worth (docs/method.md §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.checklist_rules import when_id
from cm2_agent.types.scripted_turns import exogenous_pattern

from .checks import Resolved, resolve
from .payments import INAPPLICABLE
from .shaping import ItemColumn


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedItem:
    """An item with its check resolved (None: a judge, or other items, decide it), and the item that stands for its
    `when`, which is asked by itself. `by_user` says that the user's messages alone decide whether it applies."""

    item: Item
    check: Resolved | None
    condition: PreparedItem | None = None
    by_user: bool = False

    @classmethod
    def of(cls, item: Item, functions: Mapping[str, CheckFunction] | None) -> PreparedItem:
        """Raises ChecklistError where a check cannot be resolved."""
        check = None if item.check is None else resolve(item.check, functions, item=item.id, kind=item.kind)
        if item.when is None:
            return cls(item=item, check=check)
        question = item.when_question
        return cls(
            item=item,
            check=check,
            condition=cls.of(
                Item(
                    when_id(item),
                    question,
                    check=item.when if question is None else None,
                    turn=item.turn,
                    agent=item.agent,
                ),
                functions,
            ),
            by_user=exogenous_pattern(item) is not None,
        )


def applied(column: ItemColumn | None, item: Item, condition: ItemColumn | None, waits: bool) -> ItemColumn | None:
    """The item's column once its condition is known: NULL with the condition's, INAPPLICABLE where it is false. None
    for a condition that is still to be judged, and (`waits`) for one whose function is still to be asked."""
    if condition is None or waits or condition.value:
        return column
    if condition.value is False or condition.reason == INAPPLICABLE.reason:
        return INAPPLICABLE
    return ItemColumn(
        value=None,
        reason=condition.reason,
        cause=condition.cause,
        explanation=f"whether item {item.id} applies: {condition.explanation or condition.reason}",
        evidence=condition.evidence,
    )


def otherwise(item: Item, steps: int, cut: str | None) -> ItemColumn:
    """The column of an item that does not apply, as its `otherwise` has it. What a limit or an exception cut short may
    have come to apply, so nothing is paid there."""
    if item.otherwise == "unpaid":
        return ItemColumn(value=False, reason=INAPPLICABLE.reason)
    if cut is not None:
        return ItemColumn(value=False, reason=cut)
    return ItemColumn(value=True, first_true_step=steps, reason=INAPPLICABLE.reason)


__all__ = ["PreparedItem", "applied", "otherwise"]
