"""Applicability: what decides whether an item applies, and what one that does not is worth (docs/method.md §2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.checklist_rules import when_id
from cm2_agent.types.scripted_turns import exogenous_pattern

from ..judges.judge_pass import NOT_ASKED
from .checks import Resolved, resolve
from .payments import INAPPLICABLE
from .shaping import ItemColumn

PENDING = ItemColumn(value=None, reason="check failed", cause="infrastructure", explanation="the check was not asked")
"""Stands in a column until the check function has answered (function_checks.py)."""


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


def apply_conditions(
    columns: list[ItemColumn | None],
    items: Sequence[Item],
    conditions: Mapping[int, int],
    *,
    steps: int,
    cut: str | None,
    live: bool,
) -> None:
    """Fill the columns of the items of which it is known that they do not apply, or that nobody could tell.

    Args:
        columns: Those of a turn's items and of their conditions.
        items: Whose they are.
        conditions: By the index of an item that of its condition.
        steps: How many steps the turn has.
        cut: Why it ended early.
        live: An item that does not apply is left out of the turn; else it is worth what its `otherwise` says.
    """
    if not steps:
        return
    for at, by in conditions.items():
        condition = columns[by]
        if condition is not None and condition is not PENDING and not condition.value and condition.reason != NOT_ASKED:
            columns[at] = _without(items[at], condition)
    if live:
        return
    for at, column in enumerate(columns):
        if column is not None and column.value is None and column.reason == INAPPLICABLE.reason:
            columns[at] = _otherwise(items[at], steps, cut)


def _without(item: Item, condition: ItemColumn) -> ItemColumn:
    """The column of an item whose condition is false or NULL."""
    if condition.value is False or condition.reason == INAPPLICABLE.reason:
        return INAPPLICABLE
    return ItemColumn(
        value=None,
        reason=condition.reason,
        cause=condition.cause,
        explanation=f"whether item {item.id} applies: {condition.explanation or condition.reason}",
        evidence=condition.evidence,
    )


def _otherwise(item: Item, steps: int, cut: str | None) -> ItemColumn:
    """The column of an item that does not apply, as its `otherwise` has it. What a limit or an exception cut short may
    have come to apply, so nothing is paid there."""
    if item.otherwise == "unpaid":
        return ItemColumn(value=False, reason=INAPPLICABLE.reason)
    if cut is not None:
        return ItemColumn(value=False, reason=cut)
    return ItemColumn(value=True, first_true_step=steps, reason=INAPPLICABLE.reason)


__all__ = ["PENDING", "PreparedItem", "apply_conditions"]
