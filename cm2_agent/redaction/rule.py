"""A rule of the redactor: finds values of one kind, says when two are the same, and makes a placeholder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from cm2_agent.errors import TaskError
from cm2_agent.types.check_specs import compile_pattern

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


class Draw(Protocol):
    """Characters that depend on the value and the redactor's key alone, as many as are asked for."""

    def __call__(self, alphabet: str, length: int) -> str: ...


Finder = Callable[[str], Iterable[tuple[int, int]]]


def _same(value: str) -> str:
    return value


@dataclass(frozen=True)
class Rule:
    """What to replace. `pattern` is RE2 syntax (linear time; no look-around); `find` is a function of a text that gives
    the spans (start, end) instead. Give one of the two.

    `normal`: the spelling that all spellings of one value share. `make(value, draw)`: a placeholder, `[name …]` where
    none is given; `made`: a pattern that every placeholder of the rule matches and no value does. `key` tells from a
    JSON key that a text under it which is `whole` is a value although `find` would not know it. `number`: a JSON number
    may be a value too, by its digits. Raises TaskError where a rule cannot be one.

    >>> Rule("badge", r"B-[0-9]{5}").spans("badge B-12345")
    [(6, 13)]
    """

    name: str
    pattern: str | None = None
    find: Finder | None = field(default=None, kw_only=True)
    normal: Callable[[str], str] = field(default=_same, kw_only=True)
    make: Callable[[str, Draw], str] | None = field(default=None, kw_only=True)
    made: str | None = field(default=None, kw_only=True)
    key: Callable[[str], bool] | None = field(default=None, kw_only=True)
    whole: Callable[[str], bool] | None = field(default=None, kw_only=True)
    number: bool = field(default=False, kw_only=True)
    _finder: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if re.fullmatch(r"[a-z][a-z0-9_\-]{0,39}", self.name) is None:
            raise TaskError(f"a rule is named {self.name!r}; expected lower-case letters, digits, - and _")
        if (self.pattern is None) == (self.find is None):
            raise TaskError(
                f"rule {self.name!r} has {'both' if self.find else 'neither'} pattern and find; give one of the two"
            )
        if (self.make is None) != (self.made is None):
            raise TaskError(
                f"rule {self.name!r} gives one of make and made; a placeholder must be known again: give both or"
                " neither"
            )
        if self.pattern is None:
            return
        try:
            compiled = compile_pattern(self.pattern)
        except ValueError as error:
            raise TaskError(f"rule {self.name!r}: {error}") from error
        if compiled.search("") is not None:
            raise TaskError(
                f"rule {self.name!r}: the pattern {self.pattern!r} matches nothing at all; expected at least one"
                " character"
            )
        object.__setattr__(self, "_finder", compiled)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the rule finds something: spans within the text, none empty."""
        found = (
            ((hit.start(), hit.end()) for hit in self._finder.finditer(text)) if self.find is None else self.find(text)
        )
        return [(start, end) for start, end in found if 0 <= start < end <= len(text)]

    def placeholder(self, value: str, draw: Draw) -> str:
        return f"[{self.name} {draw(BASE32, 12)}]" if self.make is None else self.make(value, draw)

    @property
    def placeholders(self) -> str:
        """A pattern of the rule's placeholders."""
        return rf"\[{re.escape(self.name)} [a-z2-7]{{12}}\]" if self.made is None else self.made


__all__ = ["BASE32", "Draw", "Finder", "Rule"]
