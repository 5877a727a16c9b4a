"""Benign edits: changes of the replies that change nothing of what was done or said: no verdict may follow them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from cm2_agent.types.trace import Trace

from .draft import Draft

_BULLETS = re.compile(r"(?m)^(?:[-*•] .+(?:\n|$)){2,}")
_POLITE = {"please": "kindly", "thanks": "thank you", "you're welcome": "my pleasure", "sorry": "my apologies"}
_POLITE_WORD = re.compile(r"\b(" + "|".join(map(re.escape, _POLITE)) + r")\b", re.IGNORECASE)


def _spaced(text: str) -> str:
    return text.replace(". ", ".  ") + "\n"


def _stopped(text: str) -> str:
    bare = text.rstrip()
    return bare[:-1] if bare.endswith(".") else bare + "." if bare[-1:].isalnum() else text


def _greeting(text: str) -> str:
    return f"Hello! {text}"


def _closing(text: str) -> str:
    return f"{text}\n\nBest regards"


def _polite(text: str) -> str:
    return _POLITE_WORD.sub(lambda match: _POLITE[match[0].casefold()], text)


def _quotes(text: str) -> str:
    return re.sub(r"(?<=\w)'(?=\w)", "\u2019", text)


def _reordered(text: str) -> str:
    """Lists of bullets the other way round."""

    def turned(match: re.Match[str]) -> str:
        lines = match[0].rstrip("\n").split("\n")
        return "\n".join(reversed(lines)) + ("\n" if match[0].endswith("\n") else "")

    return _BULLETS.sub(turned, text)


def _wrapped(text: str) -> str:
    return text.replace(". ", ".\n")


EDITS: Mapping[str, Callable[[str], str]] = {
    "a greeting": _greeting,
    "white space": _spaced,
    "the full stop": _stopped,
    "a closing": _closing,
    "line breaks": _wrapped,
    "apostrophes": _quotes,
    "politeness": _polite,
    "the order of a list": _reordered,
}
"""By what they change, in the order in which they are tried."""


def benign_edits(trace: Trace) -> list[tuple[str, Trace]]:
    """The trace under each edit that changes a reply of it.

    >>> from cm2_agent import Message, Run, Trace
    >>> from cm2_agent.rewards.certificate.benign import benign_edits
    >>> run = Run(id="r", messages=(Message.of("user", "Hi"), Message.of("assistant", "Hi. How can I help?")))
    >>> [name for name, _ in benign_edits(Trace.of(run))]
    ['a greeting', 'white space', 'a closing', 'line breaks']
    """
    made = []
    for name, edit in EDITS.items():
        draft = Draft(trace)
        if draft.every_reply(edit):
            made.append((name, draft.trace()))
    return made


__all__ = ["EDITS", "benign_edits"]
