"""Text for people: shortened so that a line stays readable."""

from __future__ import annotations


def shorten(text: str, width: int) -> str:
    """The text, cut to `width` characters of which the last is then an ellipsis.

    >>> shorten("a long explanation", 7), shorten("short", 7)
    ('a long…', 'short')
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"


__all__ = ["shorten"]
