"""Records out of a file that may be broken: where each begins, what it holds, and what is wrong with those that cannot
be read.

It is apart from the formats because every one of them meets the same damage: a cut last line, a list that spans lines,
bytes that are not UTF-8, numbers that are no numbers, nesting without end. Whatever is wrong with one record, the rest
is still found."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON

MAX_DEPTH = 100
"""Deeper nesting than this is refused: no dialogue needs it, and code further on recurses."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}\[\]]', re.DOTALL)
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')
_CLOSER = {"{": "}", "[": "]"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A record that is JSON. `line` is the 1-based line on which it begins, `number` its 1-based place in the file."""

    line: int
    number: int
    value: JSON


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A record that was skipped, and why."""

    line: int
    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}, record {self.number}: {self.reason}"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)


def parse_json(text: str) -> JSON:
    """The JSON value that the text is. Raises ValueError: not JSON, a number that is not finite, nesting deeper than
    MAX_DEPTH, half a surrogate pair."""
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    flaw = _flaw(value)
    if flaw is not None:
        raise ValueError(flaw)
    return value


def read_records(path: str | Path) -> Iterator[Found | Problem]:
    """The records of a JSON or JSON Lines file, in order: the elements of a list, or one value after the other.

    A list whose first element has a `role` is one record (a chat), not a list of records. Raises TraceError where the
    file cannot be opened or holds nothing."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TraceError(
            f"{path}: cannot be read: {error.strerror or error}. Expected a JSON or JSON Lines file."
        ) from error
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    if not text.strip():
        raise TraceError(f"{path}: is empty. Expected a JSON or JSON Lines file with at least one record.")
    return _Scanner(text).scan()


class _Scanner:
    """Walks the text once; every position is visited a bounded number of times."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.number = 0
        self._line, self._counted = 1, 0
        self._runs_out = False

    def scan(self) -> Iterator[Found | Problem]:
        at = self._space(0)
        while at < len(self.text):
            if self._is_list_of_records(at):
                at = yield from self._elements(at + 1)
            else:
                at = yield from self._value(at)
            at = self._space(at)

    def _value(self, at: int) -> Generator[Found | Problem, None, int]:
        """One value at the top level: a line of JSON Lines, or an object over several lines. Returns where to go on."""
        record, end = self._decode(at)
        yield record
        return self._next_line(at) if end is None else end

    def _elements(self, at: int) -> Generator[Found | Problem, None, int]:
        """The elements of a list whose bracket was passed. Returns where to go on."""
        opener: str | None = None
        while True:
            at = self._space(at)
            if at >= len(self.text):
                self.number += 1
                yield Problem(
                    line=self._line_of(at),
                    number=self.number,
                    reason="the file ends inside the list; it may be cut short",
                )
                return at
            if self.text[at] == "]":
                return at + 1
            if self.text[at] == ",":
                at += 1
                continue
            key = _FIRST_KEY.match(self.text, at)
            opener = key.group(1) if key is not None else opener
            record, end = self._decode(at)
            yield record
            if end is None:
                end = self._closed(at)
            at = end if end is not None else self._next_opener(at + 1, opener)

    def _decode(self, at: int) -> tuple[Found | Problem, int | None]:
        """The record at a position, and its end; None for an end that only the repair can tell."""
        self.number += 1
        line = self._line_of(at)
        try:
            value, end = _DECODER.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            where = "" if error.lineno == line else f" on line {error.lineno}"
            return Problem(
                line=line, number=self.number, reason=f"not JSON: {error.msg}{where}, column {error.colno}"
            ), None
        except RecursionError:
            return Problem(line=line, number=self.number, reason=f"nested deeper than {MAX_DEPTH} levels"), None
        except ValueError as error:
            return Problem(line=line, number=self.number, reason=f"not usable JSON: {str(error)[:120]}"), None
        flaw = "not UTF-8" if _ESCAPED_BYTE.search(self.text, at, end) else _flaw(value)
        if flaw is not None:
            return Problem(line=line, number=self.number, reason=flaw), end
        return Found(line=line, number=self.number, value=value), end

    def _is_list_of_records(self, at: int) -> bool:
        if self.text[at] != "[":
            return False
        first = self._space(at + 1)
        if first >= len(self.text) or self.text[first] != "{":
            return True
        try:
            value, _ = _DECODER.raw_decode(self.text, first)
        except (ValueError, RecursionError):
            key = _FIRST_KEY.match(self.text, first)
            return key is None or key.group(1) not in {'"role"', '"content"'}
        return "role" not in value

    def _closed(self, at: int) -> int | None:
        """The end of a broken element whose brackets still balance and which a comma or the list's end follows."""
        if self._runs_out:
            return None  # a scan to the end a broken record would take time quadratic in the file
        open_: list[str] = []
        for token in _TOKEN.finditer(self.text, at):
            mark = token.group()
            if mark in _CLOSER:
                open_.append(_CLOSER[mark])
            elif mark in "}]":
                if not open_ or open_.pop() != mark:
                    return None
                if not open_:
                    after = self._space(token.end())
                    return token.end() if self.text[after : after + 1] in {",", "]"} else None
            elif not open_:
                return None
        self._runs_out = True
        return None

    def _next_opener(self, at: int, key: str | None) -> int:
        """Where the next element begins: at the next object that starts with the key that elements of this list start
        with."""
        if key is None:
            return len(self.text)
        found = re.compile(r"\{\s*" + re.escape(key) + r"\s*:").search(self.text, at)
        return len(self.text) if found is None else found.start()

    def _next_line(self, at: int) -> int:
        """The next line that is indented no deeper than the broken record and does not merely close something."""
        column = at - (self.text.rfind("\n", 0, at) + 1)
        while True:
            newline = self.text.find("\n", at)
            if newline < 0:
                return len(self.text)
            at = newline + 1
            first = self._space(at)
            indent = first - (self.text.rfind("\n", 0, first) + 1)
            if first < len(self.text) and indent <= column and self.text[first] not in "}],":
                return first
            at = max(at, first)

    def _space(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return at if match is None else match.end()

    def _line_of(self, at: int) -> int:
        self._line += (
            self.text.count("\n", self._counted, at)
            if at >= self._counted
            else -self.text.count("\n", at, self._counted)
        )
        self._counted = at
        return self._line


def _flaw(value: JSON) -> str | None:
    """What makes parsed JSON unusable further on, None where nothing does."""
    level: list[JSON] = [value]
    for _ in range(MAX_DEPTH):
        below: list[JSON] = []
        for item in level:
            if isinstance(item, str):
                if _SURROGATE.search(item):
                    return "holds half a surrogate pair, which is not text"
            elif isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return None
        level = below
    return f"nested deeper than {MAX_DEPTH} levels"
