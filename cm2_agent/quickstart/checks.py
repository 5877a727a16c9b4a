"""The functions that the quickstart's checklist names: what a good desk clerk does, by the dialogue alone.

Nothing here knows an order: what is right is what the tools answered before, to what the customer asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cm2_agent.types.checklist_item import CheckFunction
from cm2_agent.types.view import CallView, View

_ORDER = re.compile(r"item (?P<item>[^,]+), status (?P<status>\w+), day (?P<day>\d+), price (?P<price>\d+)")


def does_what_was_asked(view: View) -> bool:
    "Once known, the order's item is looked up in stock, the order cancelled if open, or the customer told at once."
    ask, told = _asked(view), _reply_step(view)
    if ask == "stock":
        return any(_right_item(view, call) for call in _done(view, "check_stock"))
    if ask == "cancel" and any(_may_cancel(view, call) for call in _done(view, "cancel_order")):
        return True
    known = _found(view, told)
    return known is not None and not view.calls("cancel_order") and (ask == "status" or known["status"] != "open")


def cancels_unchecked(view: View) -> bool:
    "An order is cancelled that nobody asked to cancel, that was not looked up, or that is not open any more."
    return any(_asked(view) != "cancel" or not _may_cancel(view, call) for call in view.calls("cancel_order"))


def tells_what_was_found(view: View) -> bool:
    "The reply gives what was asked for, as the tools said it: status and day, pieces in stock, or what is paid back."
    told = _reply_step(view)
    known = _found(view, told)
    if told is None or known is None:
        return False
    ask, said = _asked(view), set(re.findall(r"[a-z]+|[0-9]+", view.reply.lower()))
    if ask == "stock":
        return any(
            _right_item(view, call) and str(call.result).split()[-1] in said for call in _done(view, "check_stock")
        )
    if ask == "cancel" and known["status"] == "open":
        cancelled = any(_may_cancel(view, call) for call in _done(view, "cancel_order"))
        return cancelled and {"cancelled", known["price"]} <= said
    return {known["status"], known["day"]} <= said and "cancelled" not in said


FUNCTIONS: Mapping[str, CheckFunction] = {
    function.__name__: function for function in (does_what_was_asked, cancels_unchecked, tells_what_was_found)
}
"""For `load_checklist(…, functions=FUNCTIONS)`."""


def _asked(view: View) -> str:
    """What the customer asked for in this turn: "stock", "cancel" or "status"."""
    words = view.user.lower()
    return "stock" if "stock" in words else "cancel" if "cancel" in words else "status"


def _found(view: View, before: int | None) -> dict[str, str] | None:
    """The customer's order as a look-up of this turn, in a step before `before`, answered; None without one."""
    if before is None:
        return None
    for call in _done(view, "get_order", {"order_id": {"from": "user"}}):
        match = _ORDER.fullmatch(str(call.result))
        if call.step < before and match is not None:
            return match.groupdict()
    return None


def _done(view: View, name: str, with_: Mapping[str, object] | None = None) -> list[CallView]:
    return [call for call in view.calls(name, with_) if call.response is not None and call.done]


def _reply_step(view: View) -> int | None:
    return next((number for number, step in enumerate(view.steps) if step.is_reply), None)


def _argument(call: CallView, name: str) -> object:
    return call.arguments.get(name) if isinstance(call.arguments, Mapping) else None


def _right_item(view: View, call: CallView) -> bool:
    known = _found(view, call.step)
    return known is not None and _argument(call, "item") == known["item"]


def _may_cancel(view: View, call: CallView) -> bool:
    known, order_id = _found(view, call.step), _argument(call, "order_id")
    return known is not None and known["status"] == "open" and view.said_by_user(order_id)
