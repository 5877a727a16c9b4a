"""Text for people: shortened to a line, what is wrong with data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_problem(error: ValidationError, *, whole: str = "", shown: int = 0) -> str:
    """The first thing that is wrong, as `place: what`; `whole` is the place of what concerns all of it.

    Args:
        error: What pydantic found.
        whole: The place's name where the problem is not in one part.
        shown: As many characters of the given value are shown, if any.
    """
    detail = error.errors(include_url=False, include_input=shown > 0)[0]
    place = ".".join(map(str, detail["loc"])) or whole
    given = f" (given {str(detail.get('input'))[:shown]!r})" if shown else ""
    return f"{place + ': ' if place else ''}{detail['msg']}{given}"


def shorten(text: str, width: int) -> str:
    """The text, cut to `width` characters of which the last is then an ellipsis.

    >>> shorten("a long explanation", 7), shorten("short", 7)
    ('a long…', 'short')
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"


__all__ = ["first_problem", "shorten"]
