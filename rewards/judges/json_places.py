"""JSONPlaces: where in a JSON text each key and value stands, so that a quote can be shown with the keys it stands
under."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from typing import NamedTuple

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_CALL = re.compile(r"\s*([^\s{}\[\]\"]{1,128})\s+(?=[{\[])")
_PLAIN_KEY = re.compile(r"[^\W\d]\w*\Z")


class JSONEntry(NamedTuple):
    """A key and its value, or an element of a list: raw[start:end], the value from `value` on."""

    path: str
    start: int
    value: int
    end: int
    is_leaf: bool


class JSONPlaces:
    """The entries of a text that is JSON, or a tool call: a name and JSON.

    >>> places = JSONPlaces.of('get_order {"order": {"id": 7, "items": ["a", "b"]}}')
    >>> [places.around(start, start + 1).path for start in (23, 42)]
    ['get_order.order.id', 'get_order.order.items[0]']
    """

    def __init__(self, text: str, start: int, name: str) -> None:
        self.text = text
        self.entries: list[JSONEntry] = []
        self._scan(start, name)
        self._ends = [entry.end for entry in self.entries]

    @classmethod
    def of(cls, text: str) -> JSONPlaces | None:
        """None where the text is no JSON object or list."""
        call = _CALL.match(text)
        start = call.end() if call else len(text) - len(text.lstrip())
        if text[start : start + 1] not in ("{", "["):
            return None
        try:
            json.loads(text[start:])
        except (ValueError, RecursionError):
            return None
        return cls(text, start, call[1] if call else "")

    def around(self, start: int, end: int) -> JSONEntry:
        """The smallest entry that holds text[start:end]; the whole where it is in no smaller one."""
        for entry in self.entries[bisect_left(self._ends, end) :]:
            if entry.start <= start:
                return entry
        return self.entries[-1]

    def within(self, entry: JSONEntry, start: int, end: int) -> tuple[int, int]:
        """From the first to the last of an entry's own entries that text[start:end] touches."""
        touched = [
            one
            for one in self.entries
            if entry.value < one.start and one.end < entry.end and one.start < end and one.end > start
        ]
        return (
            (min(one.start for one in touched), max(one.end for one in touched))
            if touched
            else (entry.start, entry.end)
        )

    def parts_of_one(self, pieces: tuple[tuple[int, int], ...]) -> bool:
        """Whether the pieces stand in one entry, and not in several elements of a list."""
        entry = self.around(pieces[0][0], pieces[-1][1])
        if entry.is_leaf or self.text[entry.value] != "[":
            return True
        return len({self.within(entry, start, end) for start, end in pieces}) == 1

    def _scan(self, start: int, name: str) -> None:
        # an open object or list: its path, where its entry and its value begin, its next index (-1: an object)
        stack: list[tuple[str, int, int, int]] = []
        path, begin, key, after_key = name, start, "", False
        for found in _TOKEN.finditer(self.text, start):
            mark = found[0]
            if mark in "{[":
                stack.append((path, begin, found.start(), -1 if mark == "{" else 0))
                if mark == "[":
                    path, begin = f"{path}[0]", -1
                after_key = False  # what follows is a key or an element
            elif mark in "}]":
                path, begin, value, _ = stack.pop()
                self._add(path, begin, value, found.end(), False)
            elif mark == ",":
                parent, opened, value, index = stack[-1]
                if index >= 0:
                    stack[-1] = (parent, opened, value, index + 1)
                    path = f"{parent}[{index + 1}]"
                begin, after_key = -1, False
            elif mark == ":":
                path, after_key = _joined(stack[-1][0], key), True
            elif stack and stack[-1][3] < 0 and not after_key:
                key, begin = mark, found.start()
            else:
                self._add(path, begin if begin >= 0 else found.start(), found.start(), found.end(), True)

    def _add(self, path: str, start: int, value: int, end: int, is_leaf: bool) -> None:
        self.entries.append(
            JSONEntry(path=path, start=value if start < 0 else start, value=value, end=end, is_leaf=is_leaf)
        )


def _joined(path: str, key: str) -> str:
    name = json.loads(key)
    if not _PLAIN_KEY.match(name):
        return f"{path}[{key}]"
    return f"{path}.{name}" if path else name


__all__ = ["JSONEntry", "JSONPlaces"]
