"""The functions that the lending desk's checklist names: what a good clerk does, by the dialogue alone.

Nothing here knows a copy: what is right is what the catalog answered in this turn, to what the reader asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cm2_agent.types.checklist_item import CheckFunction
from cm2_agent.types.view import CallView, View

_BARCODE = re.compile(r"\b[A-Z]{2}/\d{2}\b")
_COPY = re.compile(r"(?P<title>.+), shelf (?P<shelf>\d+), due (?P<due>\d+)")
_STATED = re.compile(r"\b(shelf|due|until|waiting) (\d+)")


def finds_the_copy(view: View) -> bool:
    "The copy that the reader speaks of is looked up before the reply."
    return _found(view) is not None


def takes_the_next_step(view: View) -> bool:
    "Once the copy is found: its title's readers are counted if that was asked, the loan extended if none waits."
    if _reply_step(view) is None or _found(view) is None:
        return False
    ask, waiting = _asked(view), _waiting(view)
    if ask == "place":
        return not view.calls("count_waiting") and not view.calls("extend_loan")
    if waiting is None:
        return False
    return (_until(view) is not None) if ask == "keep" and waiting == "0" else not view.calls("extend_loan")


def extends_without_leave(view: View) -> bool:
    "A loan is extended that nobody asked to keep, or before it is known that nobody waits."
    return any(
        _asked(view) != "keep" or _waiting(view, call.step) != "0" or _argument(call, "barcode") != _barcode(view)
        for call in view.calls("extend_loan")
    )


def first_fact(view: View) -> bool:
    "The reply gives the first thing the reader wants to know as the catalog has it."
    return _states(view, 0)


def second_fact(view: View) -> bool:
    "The reply gives the second thing the reader wants to know as the catalog has it."
    return _states(view, 1)


FUNCTIONS: Mapping[str, CheckFunction] = {
    function.__name__: function
    for function in (finds_the_copy, takes_the_next_step, extends_without_leave, first_fact, second_fact)
}
"""For `load_checklist(…, functions=FUNCTIONS)`."""


def _states(view: View, place: int) -> bool:
    """Whether the reply gives one of the two facts, and no other figure of its kind."""
    found = _found(view)
    if found is None or _reply_step(view) is None:
        return False
    ask, waiting, until = _asked(view), _waiting(view), _until(view)
    wanted = {
        "place": (("shelf", found["shelf"]), ("due", found["due"])),
        "queue": (("waiting", waiting), ("shelf", found["shelf"])),
        "keep": (("until", until), ("shelf", found["shelf"]))
        if waiting == "0"
        else (("waiting", waiting), ("due", found["due"])),
    }[ask][place]
    stated = [value for name, value in _STATED.findall(view.reply.lower()) if name == wanted[0]]
    return wanted[1] is not None and stated == [wanted[1]]


def _asked(view: View) -> str:
    """What the reader asked for in this turn: "place", "queue" or "keep"."""
    words = view.user.lower()
    return "keep" if "keep" in words else "queue" if "readers" in words else "place"


def _barcode(view: View) -> str | None:
    """The barcode that the reader named last."""
    named = _BARCODE.findall(view.user_text)
    return named[-1] if named else None


def _found(view: View) -> dict[str, str] | None:
    """The reader's copy as the first look-up of this turn found it, before the reply; None without one."""
    told = _reply_step(view)
    for call in _done(view, "find_copy"):
        match = _COPY.fullmatch(str(call.result))
        before = told is None or call.step < told
        if before and match is not None and _argument(call, "barcode") == _barcode(view):
            return match.groupdict()
    return None


def _waiting(view: View, before: int | None = None) -> str | None:
    """How many wait for the copy's title, as counted in this turn (in a step before `before`); None if it was not."""
    found = _found(view)
    for call in _done(view, "count_waiting"):
        if found is not None and _argument(call, "title") == found["title"] and (before is None or call.step < before):
            return _figure(call)
    return None


def _until(view: View) -> str | None:
    """The new due day as the extension of this turn gave it, after the count; None without one."""
    for call in _done(view, "extend_loan"):
        if _argument(call, "barcode") == _barcode(view) and _waiting(view, call.step) == "0":
            return _figure(call)
    return None


def _figure(call: CallView) -> str:
    """The figure that the catalog's answer ends with."""
    return str(call.result).rpartition(" ")[2]


def _done(view: View, name: str) -> list[CallView]:
    return [call for call in view.calls(name) if call.response is not None and call.done]


def _reply_step(view: View) -> int | None:
    return next((number for number, step in enumerate(view.steps) if step.is_reply), None)


def _argument(call: CallView, name: str) -> object:
    return call.arguments.get(name) if isinstance(call.arguments, Mapping) else None
