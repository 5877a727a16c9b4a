"""Records out of a JSON or JSON Lines file that may be broken: where each begins, what it holds, and what is wrong with
those that cannot be read.

A line of JSON Lines that is broken costs itself alone, whatever is wrong with it: a cut last line, bytes that are not
UTF-8, numbers that are no numbers, nesting without end. A list that is broken is read up to there, and is one error."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from cm2_agent.errors import TraceError
from cm2_agent.importers.text_source import PIECE, CutShort, cannot_be_read, text_pieces
from cm2_agent.types.json_values import JSON

MAX_DEPTH = 100
"""Deeper nesting than this is refused: no dialogue needs it, and code further on recurses."""

MOST_CHARACTERS = 1 << 29
"""A record longer than this (half a gigabyte) is refused: it is held in memory whole."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_SPACE = re.compile(r"[ \t\r\n]*")
_COMMENT = re.compile(r"//|#|/\*")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')
_LIST_IS_BROKEN = (
    "nothing behind it in this list can be read. Write one record a line (JSON Lines): then a broken one costs itself"
    " alone"
)
_NEAR = 16
"""So near to the end of what was read a word may have been cut (`-Infinity`, `\\u00e9`)."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A record that is JSON. `line` is the 1-based line on which it begins, `number` its 1-based place in the file;
    `name` says which dialogue of a record it is that holds several, `note` what of the file around it was not read."""

    line: int
    number: int
    value: JSON
    name: str = ""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A record that was skipped, and why."""

    line: int
    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}, record {self.number}: {self.reason}"


_DECODER = json.JSONDecoder()


def parse_json(text: str, *, strict: bool = True) -> JSON:
    """The JSON value that the text is. Raises ValueError: not JSON, a number that is not finite, nesting deeper than
    MAX_DEPTH, half a surrogate pair. Not `strict`: texts in it may hold line breaks as they are."""
    try:
        value = (_DECODER if strict else _LENIENT).decode(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    flaw = flaw_of(value)
    if flaw is not None:
        raise ValueError(flaw)
    return value


_LENIENT = json.JSONDecoder(strict=False)


def read_records(path: str | Path, encoding: str | None = None) -> Iterator[Found | Problem]:
    """The records of a JSON or JSON Lines file, in order: the elements of a list, or one value after the other. What
    was read is forgotten, so that memory holds one record at a time, whatever the file's size.

    A list whose first element has a `role` is one record (a chat), not a list of records. Raises TraceError where the
    file cannot be opened or holds nothing, OSError where the disk fails meanwhile."""
    pieces = text_pieces(path, encoding)
    start: list[str] = []
    broken: list[Problem] = []
    try:
        for piece in pieces:  # here, so that what cannot be opened is known before the first record is asked for
            start.append(piece)
            if piece.strip():
                break
    except CutShort as cut:
        broken.append(Problem(line=1, number=1, reason=_cut_short(cut)))
    except OSError as error:
        raise cannot_be_read(path, error) from error
    if not "".join(start).strip() and not broken:
        raise TraceError(f"{path}: is empty. Expected a JSON or JSON Lines file with at least one record.")
    return iter(broken) if broken else _Scanner(chain(start, pieces)).scan()


def _cut_short(cut: CutShort) -> str:
    return f"the packed file is cut short or broken here ({cut}); nothing behind it can be read. Pack it again"


class _Repeated(dict[str, JSON]):
    """An object that names a key twice."""

    key: str


def _object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = _Repeated(found)
    times = Counter(key for key, _ in pairs)
    repeated.key = next(key for key, _ in pairs if times[key] > 1)
    return repeated


_RECORDS = json.JSONDecoder(object_pairs_hook=_object)


class _Scanner:
    """Walks the text once; every position is visited a bounded number of times. `text` is a window on it: what lies
    before the record that is being read is dropped, and more is read where a record goes on behind its end."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self.text = ""
        self.number = 0
        self._pieces = pieces
        self._whole = False
        self._cut: CutShort | None = None
        self._line, self._counted = 1, 0
        self._column = 0  # of the window's first character, 0-based

    def scan(self) -> Iterator[Found | Problem]:
        at = self._space(0)
        while at < len(self.text):
            if self._is_list_of_records(at):
                at = yield from self._elements(at + 1)
            else:
                at = yield from self._value(at)
            at = self._space(self._drop(at))
        if self._cut is not None:
            yield Problem(line=self._line_of(len(self.text)), number=self.number + 1, reason=_cut_short(self._cut))

    def _value(self, at: int) -> Generator[Found | Problem, None, int]:
        """One value at the top level: a line of JSON Lines, or an object over several lines. Returns where to go on."""
        record, end = self._decode(at)
        yield record
        return self._next_line(at) if end is None else end

    def _elements(self, at: int) -> Generator[Found | Problem, None, int]:
        """The elements of a list whose bracket was passed. Returns where to go on. A broken element ends the file:
        where it stops, and the next one begins, cannot be known."""
        while True:
            at = self._space(self._drop(at))
            if at >= len(self.text):
                if self._cut is not None:
                    return at
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
                self._skip_to_the_end()
                return len(self.text)
            yield record
            at = end

    def _decode(self, at: int) -> tuple[Found | Problem, int | None]:
        """The record at a position, and its end; None where the end cannot be known."""
        self.number += 1
        line = self._line_of(at)
        try:
            value, end = self._raw(at)
        except json.JSONDecodeError as error:
            number = self._line_of(min(error.pos, len(self.text)))
            self._line_of(at)
            where = "" if number == line else f" on line {number}"
            start = self.text.rfind("\n", 0, error.pos)
            column = error.pos - start if start >= 0 else self._column + error.pos + 1
            reason = f"not JSON: {error.msg}{where}, column {column}{self._advice(at, error)}"
            return Problem(line=line, number=self.number, reason=reason), None
        except RecursionError:
            return Problem(line=line, number=self.number, reason=f"nested deeper than {MAX_DEPTH} levels"), None
        except ValueError as error:
            return Problem(line=line, number=self.number, reason=f"not usable JSON: {str(error)[:120]}"), None
        flaw = NOT_UTF8 if _ESCAPED_BYTE.search(self.text, at, end) else flaw_of(value)
        if flaw is not None:
            return Problem(line=line, number=self.number, reason=flaw), end
        return Found(line=line, number=self.number, value=value), end

    def _raw(self, at: int) -> tuple[JSON, int]:
        """The value at a position and its end; more is read while it may go on behind what was read. What was read
        doubles each time, so that a long record is not read over and over."""
        while True:
            try:
                value, end = _RECORDS.raw_decode(self.text, at)
                number = end == len(self.text) and type(value) in (int, float)  # may have more digits
                if not number or not self._read(end - at):
                    return value, end
            except json.JSONDecodeError as error:
                open_text = error.msg.startswith("Unterminated string")
                cut = open_text or error.pos >= len(self.text) - _NEAR
                if not cut or not self._read(len(self.text) - at):
                    raise
            if len(self.text) - at > MOST_CHARACTERS:
                raise ValueError(
                    f"a record of more than {MOST_CHARACTERS:,} characters; expected one record a line (JSON Lines)"
                )

    def _advice(self, at: int, error: json.JSONDecodeError) -> str:
        """What to do about the kinds of JSON that other programs read."""
        if self.text[at : at + 1] in ("#", "/") and _COMMENT.match(self.text, at):
            return " (a comment, which JSON does not know: take it out)"
        found = self.text[error.pos : error.pos + 1]
        before = self.text[max(at, error.pos - 200) : error.pos + 1].rstrip()
        if error.msg.startswith("Illegal trailing comma") or (
            found in ("}", "]") and before[:-1].rstrip().endswith(",")
        ):
            return " (a comma behind the last element, which JSON does not know: take it out)"
        if found in ("#", "/") and _COMMENT.match(self.text, error.pos):
            return " (a comment, which JSON does not know: take it out)"
        if found == "'":
            return " (single quotes: Python wrote this; write it with json.dumps)"
        return ""

    def _is_list_of_records(self, at: int) -> bool:
        if self.text[at] != "[":
            return False
        first = self._space(at + 1)
        if first >= len(self.text) or self.text[first] != "{":
            return True
        try:
            value, _ = self._raw(first)
        except (ValueError, RecursionError):
            key = _FIRST_KEY.match(self.text, first)
            return key is None or key.group(1) not in {'"role"', '"content"'}
        return not is_message(value)

    def _next_line(self, at: int) -> int:
        """The next line that is indented no deeper than the broken record and does not merely close something."""
        start = self.text.rfind("\n", 0, at)
        column = at - (start + 1) if start >= 0 else self._column + at
        while True:
            newline = self.text.find("\n", at)
            while newline < 0:
                at = self._drop(len(self.text))
                if not self._read(0):
                    return len(self.text)
                newline = self.text.find("\n", at)
            at = newline + 1
            first = self._space(at)
            indent = first - (self.text.rfind("\n", 0, first) + 1)
            if first < len(self.text) and indent <= column and self.text[first] not in "}],":
                return first
            at = max(at, first)

    def _space(self, at: int) -> int:
        while True:
            match = _SPACE.match(self.text, at)
            at = at if match is None else match.end()
            if at < len(self.text) or not self._read(0):
                return at

    def _read(self, most: int) -> bool:
        """Read on, by at least so many characters where there are as many; whether there was anything."""
        more: list[str] = []
        size = 0
        while not self._whole and size <= most:
            try:
                piece = next(self._pieces, None)
            except CutShort as cut:
                self._cut, piece = cut, None
            if piece is None:
                self._whole = True
            elif piece:
                more.append(piece)
                size += len(piece)
        self.text += "".join(more)
        return bool(size)

    def _drop(self, at: int) -> int:
        """Forget what lies before a position; returns where that is then."""
        if at < PIECE and not (at and at == len(self.text)):
            return at
        self._line_of(at)
        newline = self.text.rfind("\n", 0, at)
        self._column = at - newline - 1 if newline >= 0 else self._column + at
        self.text, self._counted = self.text[at:], 0
        return 0

    def _skip_to_the_end(self) -> None:
        while self._read(0):
            self._drop(len(self.text))

    def _line_of(self, at: int) -> int:
        self._line += (
            self.text.count("\n", self._counted, at)
            if at >= self._counted
            else -self.text.count("\n", at, self._counted)
        )
        self._counted = at
        return self._line


def is_message(value: JSON) -> bool:
    """Whether the first element of a list says that the list is one dialogue."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("role"), str):
        return True
    if value.get("kind") in ("request", "response") and isinstance(value.get("parts"), list):
        return True  # pydantic-ai's messages
    if isinstance(value.get("from"), str) and "value" in value:
        return True  # ShareGPT's
    if value.get("lc") == 1 and str((value.get("id") or [""])[-1]).endswith(("Message", "MessageChunk")):
        return True
    return str(value.get("type")) in _LANGCHAIN and ("content" in value or "data" in value)


_LANGCHAIN = frozenset({"human", "ai", "system", "HumanMessage", "AIMessage", "SystemMessage", "HumanMessageChunk"})
NOT_UTF8 = "not UTF-8. Name its encoding, as in --encoding latin-1, or convert the file"


def flaw_of(value: JSON) -> str | None:
    """What makes parsed JSON unusable further on, None where nothing does."""
    level: list[JSON] = [value]
    for _ in range(MAX_DEPTH):
        below: list[JSON] = []
        for item in level:
            if isinstance(item, str):
                if _SURROGATE.search(item):
                    return (
                        "holds half a surrogate pair, which is not text: the two halves of a character were torn apart."
                        " Write it whole, or \\ufffd in its place"
                    )
            elif isinstance(item, float):
                if not math.isfinite(item):
                    return "holds a number that is not finite: NaN, or too large. Write null in its place"
            elif isinstance(item, dict):
                if isinstance(item, _Repeated):
                    return f"names the key {item.key!r} twice in one object; which one counts is unknown. Leave one out"
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return None
        level = below
    return f"nested deeper than {MAX_DEPTH} levels"
