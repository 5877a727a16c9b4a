"""What a store's error says: that the store is away, that it refuses this run, or neither for certain."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cm2_agent.errors import ConflictError, SchemaError, StoreError, TraceError

__all__ = ["Meaning", "meaning_of"]

Meaning: TypeAlias = Literal["away", "refused", "unclear"]

_CONTENT = (TypeError, ValueError, OverflowError, RecursionError, TraceError)
_AWAY = ("locked", "busy", "full", "unable to open", "readonly", "disk I/O", "no space", "malformed", "not a database")
_CLASSES: dict[str, Meaning] = {
    **dict.fromkeys(("08", "25", "28", "3D", "40", "53", "55", "57", "58"), "away"),
    **dict.fromkeys(("21", "22", "23", "54"), "refused"),
}
"""Classes of SQLSTATE: connections, resources and locks; data and limits of the program."""


def meaning_of(error: BaseException) -> Meaning:
    """`away`: the same may work later, for this run and for others. `refused`: it never will for this run. `unclear`:
    whether it is the run or the store shows on other runs."""
    if isinstance(error, ConflictError | TraceError):
        return "refused"
    if isinstance(error, SchemaError | OSError):
        return "away"
    if not isinstance(error, StoreError):
        return "refused"
    cause = error.__cause__
    if isinstance(cause, _CONTENT):
        return "refused"
    driver = getattr(cause, "orig", None)
    state = getattr(driver, "sqlstate", None)
    if isinstance(state, str):
        return _CLASSES.get(state[:2], "unclear")
    if type(driver).__module__.startswith("psycopg"):  # no SQLSTATE: the connection was lost, or could not be made
        return "away"
    text = str(driver or error)
    return "away" if any(word in text for word in _AWAY) else "unclear"
