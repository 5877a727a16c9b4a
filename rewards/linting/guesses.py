"""Texts that anybody can write: stock phrases, values of the usual forms, and what a pattern itself gives away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cm2_agent.types.check_specs import compile_pattern

REFUSALS = (
    "I am sorry, but I cannot help with that.",
    "I'm unable to do this. Please contact our support team.",
    "This is not possible. Is there anything else I can help you with?",
)
STOCK = (
    "Hello! How can I help you today?",
    "Done. Your request has been completed. Is there anything else I can help you with?",
    "I have looked into this for you and everything is in order.",
    "Yes, that is correct. No, there is no problem.",
    "It was shipped and arrives on 2030-01-01, in 3 to 5 business days, at 10:30.",
    "The total is $19.99 (EUR 19.99). Your reference is ABC-1234, your order number is 1234567.",
    "Your order has been cancelled, and the refund has been issued.",
    "Thank you for your patience. I understand how frustrating this is, and I apologise for the inconvenience.",
)


def guesses(patterns: Sequence[str]) -> Iterator[str]:
    """One text for each pattern that it matches: what somebody writes who knows the pattern and nothing else. Patterns
    from which none can be read off are passed over.

    >>> from cm2_agent.rewards.linting.guesses import guesses
    >>> list(guesses(["(?i)shipped on \\\\d{4}-\\\\d{2}"]))
    ['shipped on 7777-77']
    """
    for pattern in patterns:
        compiled = compile_pattern(pattern)
        found = next((text for text in _candidates(pattern) if text and compiled.search(text)), None)
        if found is not None:
            yield found


_CLASSES = {"d": "7", "w": "x", "s": " ", "b": "", "B": "", "A": "", "z": "", "n": "\n", "t": "\t"}


def _candidates(pattern: str) -> Iterator[str]:
    yield pattern
    plain = re.sub(r"\(\?[a-zA-Z]+\)", "", pattern)
    for optional in (True, False):
        yield _example(plain, optional=optional)


def _example(pattern: str, *, optional: bool) -> str:
    """A text of the pattern's form, read from left to right: of alternatives the first, of what may be left out all or
    nothing. It need not match."""
    out: list[str] = []
    stack: list[
        tuple[list[str], bool]
    ] = []  # the texts before each open group, and whether its first alternative ended
    ended = False
    last = ""  # what a quantifier would repeat
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        token: str | None = None
        if char == "\\" and at < len(pattern):
            token = _CLASSES.get(pattern[at], pattern[at])
            at += 1
        elif char == "[":
            end = pattern.find("]", at + 1)
            token, at = (_member(pattern[at:end]), end + 1) if end > 0 else ("[", at)
        elif char == "(":
            stack.append((out, ended))
            out, ended, last = [], False, ""
            at += len(prefix.group()) if (prefix := re.match(r"\?(:|P?<\w+>|[a-zA-Z]+:)", pattern[at:])) else 0
        elif char == ")" and stack:
            inner = "".join(out)
            out, ended = stack.pop()
            token = inner
        elif char == "|":
            ended = True
        elif char in "?*" or (char == "{" and (count := re.match(r"(\d+)(,\d*)?\}", pattern[at:]))):
            if char == "{":
                assert count is not None, "matched above"
                at += count.end()
                times = int(count.group(1))
            else:
                times = int(optional)
            if not ended and last:
                out[-1:] = [last * min(times, 64)]
            last = ""
        elif char in "+^$":
            last = last if char == "+" else ""
        else:
            token = " " if char == "." else char
        if token is not None and not ended:
            out.append(token)
            last = token
    return "".join(out)


def _member(members: str) -> str:
    """A character of a class, as far as its text tells."""
    if members.startswith("^"):
        return next((char for char in "x7 -" if char not in members), "é")
    if members.startswith("\\"):
        return _CLASSES.get(members[1:2], members[1:2])
    return members[:1]


__all__ = ["REFUSALS", "STOCK", "guesses"]
