"""Records out of a JSON or JSON Lines file that may be broken: where each begins, what it holds, and what is wrong with
those that cannot be read.

A line of JSON Lines that is broken costs itself alone, whatever is wrong with it: a cut last line, bytes that are not
UTF-8, numbers that are no numbers, nesting without end. A list that is broken is read up to there, and is one error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON

MAX_DEPTH = 100
"""Deeper nesting than this is refused: no dialogue needs it, and code further on recurses."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')
_LIST_IS_BROKEN = (
    "nothing behind it in this list can be read. Write one record a line (JSON Lines): then a broken one costs itself"
    " alone"
)


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


_DECODER = json.JSONDecoder()


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
        """The elements of a list whose bracket was passed. Returns where to go on. A broken element ends the file:
        where it stops, and the next one begins, cannot be known."""
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
            record, end = self._decode(at)
            if end is None:
                assert isinstance(record, Problem)
                yield replace(record, reason=f"{record.reason}; {_LIST_IS_BROKEN}")
                return len(self.text)
            yield record
            at = end

    def _decode(self, at: int) -> tuple[Found | Problem, int | None]:
        """The record at a position, and its end; None where the end cannot be known."""
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
            elif isinstance(item, float):
                if not math.isfinite(item):
                    return "holds a number that is not finite: NaN, or too large"
            elif isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return None
        level = below
    return f"nested deeper than {MAX_DEPTH} levels"
