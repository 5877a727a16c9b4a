"""Backslash escapes in a text that may be a piece of JSON: what is next to a place, and where nothing is cut in two."""

from __future__ import annotations

_LETTERS = frozenset("nrtbf")
"""Letters that a backslash makes an escape: no letters of a word."""


def before(text: str, index: int) -> str:
    """The character before `index`; empty at the beginning and after an escape such as a written-out line break."""
    if index <= 0:
        return ""
    if index >= 2 and text[index - 1] in _LETTERS and text[index - 2] == "\\" and _odd(text, index - 1):
        return ""
    if index >= 6 and text[index - 6 : index - 4] == "\\u" and _odd(text, index - 5):
        return ""
    return text[index - 1]


def after(text: str, index: int) -> str:
    """The character at `index`, empty at the end."""
    return text[index] if index < len(text) else ""


def unescaped(text: str, start: int, end: int) -> int:
    """Where a find may begin so that it takes no part of an escape with it: an escape cut in two would break the JSON
    around it."""
    if start > 0 and text[start - 1] == "\\" and _odd(text, start):
        return min(end, start + (5 if text[start] == "u" else 1))
    return start


def _odd(text: str, index: int) -> bool:
    """Whether an odd number of backslashes stands before `index`."""
    count = 0
    while index - count > 0 and text[index - count - 1] == "\\":
        count += 1
    return count % 2 == 1


__all__ = ["after", "before", "unescaped"]
