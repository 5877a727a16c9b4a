"""Where a value first stands in a dialogue: in a user's message, or in a tool's result.

A check that asks where an argument came from asks it of every call after every step, so each text is read once: a value
is looked up among the texts before it and its place is remembered, also as the dialogue grows."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.tool_content import content_text

if TYPE_CHECKING:
    from cm2_agent.types.trace import Turn

_WORD = re.compile(r"[^\W_]+")
_SCANS = 32
"""How often the texts are read through before their words are indexed: that costs about as much."""
_REMEMBERED = 100_000


def as_text(value: JSON) -> str:
    """A JSON value as it would be read: text as it is, content blocks by their texts (`content_text`), anything else as
    canonical JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and isinstance(read := content_text(value), str):
        return read
    try:
        return canonical_json(value)
    except ValueError:  # NaN and infinities are no JSON, but a tool may have answered them
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def occurs(value: JSON, text: str) -> bool:
    """Whether the value, spelled as text, stands in the text with no letter or digit touching it, whatever the case.

    >>> occurs(7, "order 7?"), occurs(7, "order 17")
    (True, False)
    """
    return _end_in(_needle(value), text.casefold()) is not None


def _needle(value: JSON) -> str:
    return as_text(value).casefold().strip()


def _end_in(needle: str, hay: str) -> int | None:
    """Where the first occurrence ends that no letter or digit touches."""
    if not needle:
        return None
    start = hay.find(needle)
    while start >= 0:
        end = start + len(needle)
        before, after = hay[start - 1 : start], hay[end : end + 1]
        if not (before.isalnum() and needle[0].isalnum()) and not (after.isalnum() and needle[-1].isalnum()):
            return end
        start = hay.find(needle, start + 1)
    return None


class Passages:
    """Texts in their order, to which more are only ever added at the end.

    A lookup reads the texts that it has not read before; after many of them an index of whole words says which texts
    are worth reading, so that lookups of n values in n texts take time linear in the texts."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._found: dict[str, int] = {}
        self._missed: dict[str, int] = {}  # how many texts the value is known not to stand in
        self._words: dict[str, list[int]] | None = None
        self._indexed = 0
        self._size = 0
        self._read = 0

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        folded = text.casefold()
        self._texts.append(folded)
        self._size += len(folded) + 1

    def joined(self, count: int) -> str:
        """The first `count` texts, a line break between them."""
        return "\n".join(self._texts[:count])

    def lengths(self, count: int) -> list[int]:
        return [len(text) for text in self._texts[:count]]

    def first(self, needle: str) -> int | None:
        """The position of the first text in which the needle stands as `occurs` has it."""
        found = self._found.get(needle)
        if found is not None or not needle:
            return found
        for position in self._worth_reading(needle, self._missed.get(needle, 0)):
            self._read += len(self._texts[position]) + 1
            if _end_in(needle, self._texts[position]) is not None:
                self._missed.pop(needle, None)
                self._found[needle] = position
                return position
        if len(self._missed) + len(self._found) > _REMEMBERED:
            self._missed.clear()
            self._found.clear()
        self._missed[needle] = len(self._texts)
        return None

    def _worth_reading(self, needle: str, start: int) -> Sequence[int]:
        words = _WORD.findall(needle)
        if not words or (self._words is None and self._read <= _SCANS * self._size):
            return range(start, len(self._texts))
        if self._words is None:
            self._words = defaultdict(list)
        for position in range(self._indexed, len(self._texts)):
            for word in set(_WORD.findall(self._texts[position])):
                self._words[word].append(position)
        self._indexed = len(self._texts)
        # No letter or digit touches an occurrence, so each of its words is a whole word of the text.
        rarest = min((self._words.get(word, []) for word in words), key=len)
        return rarest[bisect_left(rarest, start) :]


class DialogueWords:
    """What users wrote and tools answered in a dialogue. One that continues another (`before`) adds to its passages
    where nothing else has been added to them."""

    def __init__(self, turns: Sequence[Turn], before: DialogueWords | None = None) -> None:
        self._users, self._user_turns = Passages(), list[int]()
        self._tools, self._tool_steps = Passages(), list[int]()
        start = users = tools = 0
        if before is not None and before._is_latest():
            self._users, self._user_turns = before._users, before._user_turns
            self._tools, self._tool_steps = before._tools, before._tool_steps
            start, users, tools = before._last_turn
        self._last_turn: tuple[int, int, int] = (start, users, tools)
        for turn in turns[start:]:
            self._last_turn = (turn.index, users, tools)
            for message in turn.user:
                users += 1
                if users > len(self._users):
                    self._users.add(message.text)
                    self._user_turns.append(turn.index)
            for step in turn.steps:
                for response in step.responses:
                    tools += 1
                    if tools > len(self._tools):
                        self._tools.add(as_text(response.response))
                        self._tool_steps.append(step.number)
        self._counts = (users, tools)

    def user_turn(self, value: JSON) -> int | None:
        """The first turn by whose end the value stands in the users' messages."""
        needle, (count, _) = _needle(value), self._counts
        if "\n" in needle:  # it may begin in one message and end in the next
            end = _end_in(needle, self._users.joined(count))
            if end is None:
                return None
            for position, length in enumerate(self._users.lengths(count)):
                end -= length + 1
                if end < 0:
                    return self._user_turns[position]
        found = self._users.first(needle)
        return None if found is None or found >= count else self._user_turns[found]

    def tool_step(self, value: JSON) -> int | None:
        """The number of the first step in one of whose tool results the value stands."""
        found, (_, count) = self._tools.first(_needle(value)), self._counts
        return None if found is None or found >= count else self._tool_steps[found]

    def _is_latest(self) -> bool:
        return self._counts == (len(self._users), len(self._tools))


__all__ = ["DialogueWords", "Passages", "as_text", "occurs"]
