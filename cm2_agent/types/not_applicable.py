"""What a check answers where its item does not apply, and the reason that stands in such an item's verdict."""

from __future__ import annotations

from enum import Enum
from typing import Final

REASON: Final = "not applicable"
"""The reason of the verdict on an item that does not apply."""


class NotApplicable(Enum):
    """The type of `NOT_APPLICABLE`, its only member.

    >>> from cm2_agent import NOT_APPLICABLE, Checklist, Item
    >>> def refuses(view):
    ...     "An order that is shipped is not cancelled."
    ...     if "shipped" not in view.results("get_order"):
    ...         return NOT_APPLICABLE
    ...     return "cannot" in view.reply
    >>> Checklist(Item("refuses", check=refuses, otherwise="paid"), name="support").items[0].otherwise
    'paid'
    """

    NOT_APPLICABLE = REASON

    def __repr__(self) -> str:
        return self.name


NOT_APPLICABLE: Final = NotApplicable.NOT_APPLICABLE
"""A check function returns it in place of true or false where its item does not apply to the dialogue; the item's
`otherwise` says whether it is paid then."""

__all__ = ["NOT_APPLICABLE", "REASON", "NotApplicable"]
