"""Which items of a checklist apply to a task whose user's messages are fixed before the rollout (docs/method.md §2).

Only what `{user_matches: PATTERN}` asks as an item's `when` is known then, and it is alike for all rollouts of a group:
an item that does not apply is no part of its turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from cm2_agent.types.check_specs import UserMatches, compile_pattern, parse_check

if TYPE_CHECKING:
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.checklist_item import Item


def exogenous_pattern(item: Item) -> str | None:
    """The pattern that user messages are searched for to know whether the item applies; None where something else, or
    nothing, decides it."""
    if not isinstance(item.when, Mapping):
        return None
    check = parse_check(item.when)
    return check.user_matches if isinstance(check, UserMatches) else None


def items_that_apply(items: Sequence[Item], turn: int | None, messages: Sequence[str]) -> tuple[Item, ...]:
    """Those of a turn's items, or (None) of the closing block's, that are part of it when the user writes these
    messages. An item of a turn applies by that turn's message, one of the closing block by any. An item with any_of
    goes with the last of its items; where nothing that weighs is left, the turn has no items."""
    texts = messages if turn is None else messages[turn : turn + 1]
    out = {item.id for item in items if not _applies(item, texts)}
    while True:
        empty = {item.id for item in items if item.any_of and out.issuperset(item.any_of)} - out
        if not empty:
            break
        out |= empty
    left = tuple(item for item in items if item.id not in out)
    return left if any(item.weight for item in left) else ()


def turns_that_count(checklist: Checklist, messages: Sequence[str]) -> list[int | None]:
    """The turns of a task with these messages that have items, and None for a closing block that has."""
    found: list[int | None] = [
        turn for turn in range(len(messages)) if items_that_apply(checklist.of_turn(turn), turn, messages)
    ]
    return [*found, None] if items_that_apply(checklist.block, None, messages) else found


_compiled = lru_cache(maxsize=1024)(compile_pattern)


def _applies(item: Item, texts: Sequence[str]) -> bool:
    pattern = exogenous_pattern(item)
    if pattern is None:
        return True
    return any(_compiled(pattern).search(text.encode("utf-8", "replace").decode()) is not None for text in texts)


__all__ = ["exogenous_pattern", "items_that_apply", "turns_that_count"]
