"""Values of a dialogue (dates, amounts, ids) and their near misses: values of the same form that are not in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cm2_agent.types.dialogue_words import as_text
from cm2_agent.types.json_values import JSON
from cm2_agent.types.trace import Trace

_VALUE = re.compile(r"[^\W_]*\d(?:[-.:/][^\W_]*\d|[^\W_])*")
_DIGITS = re.compile(r"\d+")
MOST = 8
"""How many values of a dialogue are used."""
ANY = ("2031-07-09", "48.50")
"""A date and an amount for dialogues that hold no value."""


def values_of(trace: Trace, upto: int) -> list[str]:
    """The words with a digit that tools answered in the turns up to `upto`, errors aside, newest first; where there are
    none those of the user, else `ANY`."""
    answers = [
        as_text(response.response)
        for turn in trace.turns[: upto + 1]
        for step in turn.steps
        for response in step.responses
        if not response.error
    ]
    wrote = [message.text for turn in trace.turns[: upto + 1] for message in turn.user]
    for texts in (answers, wrote):
        found = [value for text in reversed(texts) for value in _VALUE.findall(text)]
        if found:
            return list(dict.fromkeys(found))[:MOST]
    return list(ANY)


def said(trace: Trace, more: Iterable[str] = ()) -> str:
    """Everything that users wrote, agents wrote and tools answered, and `more`."""
    texts = [message.text for message in trace.messages]
    for step in trace.steps:
        texts += [as_text(use.arguments) for use in step.tool_uses]
        texts += [as_text(response.response) for response in step.responses]
    return "\n".join([*texts, *more]).casefold()


def near(value: str, known: str) -> str | None:
    """The value with its last number off by one or a little more, of the same length, such that it stands nowhere in
    `known` (small letters); None where there is none.

    >>> near("2026-05-20", "arrives on 2026-05-20 or 2026-05-21"), near("A17", "a17")
    ('2026-05-19', 'A18')
    """
    found = list(_DIGITS.finditer(value))
    if not found:
        return None
    last = found[-1]
    width = len(last[0])
    for offset in (1, -1, 2, -2, 3, -3, 5, 7):
        number = int(last[0]) + offset
        changed = str(number).zfill(width)
        new = value[: last.start()] + changed + value[last.end() :]
        if number >= 0 and len(changed) == width and new.casefold() not in known:
            return new
    return None


def longer(value: str, known: str) -> str | None:
    """The value with one more digit behind it, which a search for the value within words takes for it; None where that
    stands in `known`.

    >>> longer("2026-05-20", "")
    '2026-05-203'
    """
    return next((value + digit for digit in "379" if (value + digit).casefold() not in known), None)


def near_arguments(arguments: Mapping[str, JSON], known: str) -> Mapping[str, JSON] | None:
    """The arguments with each number, and each text with a number, off by a little; None where none can be."""
    changed: dict[str, JSON] = {}
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        new = near(as_text(value), known)
        if new is not None:
            changed[name] = new if isinstance(value, str) else type(value)(new)
    return {**arguments, **changed} if changed else None


__all__ = ["longer", "near", "near_arguments", "said", "values_of"]
