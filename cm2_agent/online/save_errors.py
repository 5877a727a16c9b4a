"""What a store's error says: that the store is away, that it refuses this run, or neither for certain."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cm2_agent.errors import ConflictError, SchemaError, StoreError, TraceError

__all__ = ["Meaning", "is_another_store", "meaning_of"]

Meaning: TypeAlias = Literal["away", "refused", "unclear"]

_CONTENT = (TypeError, ValueError, OverflowError, RecursionError, TraceError)
_AWAY = ("locked", "busy", "full", "unable to open", "readonly", "disk I/O", "no space", "malformed", "not a database")
_ANOTHER = ("no such table", "malformed", "not a database", "was closed")
_CLASSES: dict[str, Meaning] = {
    **dict.fromkeys(("08", "25", "28", "3D", "40", "53", "55", "57", "58"), "away"),
    **dict.fromkeys(("21", "22", "23", "54"), "refused"),
}
"""Classes of SQLSTATE: connections, resources and locks; data and limits of the program."""
_NO_TABLE = ("42P01", "3F000")


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
    driver = getattr(cause, "orig", cause)  # SQLAlchemy's error, or the driver's own
    state = getattr(driver, "sqlstate", None)
    if isinstance(state, str):
        return "away" if state in _NO_TABLE else _CLASSES.get(state[:2], "unclear")
    if type(driver).__module__.startswith("psycopg"):  # no SQLSTATE: the connection was lost, or could not be made
        return "away"
    text = str(driver or error)
    return "away" if any(word in text for word in (*_AWAY, *_ANOTHER)) else "unclear"


def is_another_store(error: BaseException) -> bool:
    """Whether the database may have been replaced since the store was opened: its tables are gone, or the connection
    was lost. What the store remembers of the one before would be wrong then."""
    driver = getattr(error.__cause__, "orig", error.__cause__)
    state = getattr(driver, "sqlstate", None)
    if isinstance(state, str):
        return state in _NO_TABLE or state[:2] in ("08", "3D", "57")
    return type(driver).__module__.startswith("psycopg") or any(word in str(driver or error) for word in _ANOTHER)
