"""Where a value first stands in a dialogue: in a user's message, or in a tool's result that is no error and found
anything.

A check that asks where an argument came from asks it of every call after every step, so each text is read once: a value
is looked up among the texts before it and its place is remembered, also as the dialogue grows."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from cm2_agent.types import json_values
from cm2_agent.types.empty_answers import finds_nothing, only_repeats
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.spellings import spelled
from cm2_agent.types.tokens import CODE_WORDS, INDEXED, end_of, fold, id_spellings, tells
from cm2_agent.types.tool_content import content_text
from cm2_agent.types.tool_errors import is_error

if TYPE_CHECKING:
    from cm2_agent.types.messages import ToolCallResponse
    from cm2_agent.types.trace import Step, Turn

_SCANS = 32
"""How often the texts are read through before their words are indexed: that costs about as much."""
_REMEMBERED = 100_000
_LONGEST = 1_000_000
"""Characters of a tool's text that are still read as JSON."""


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
    """Whether the value, spelled as text, stands in the text as whole tokens (`is_boundary`), whatever the case.

    >>> occurs(7, "order 7?"), occurs(7, "order 17"), occurs(7, "7.5")
    (True, False, False)
    """
    return end_of(_needle(value), fold(text)) is not None


def leaves(value: JSON) -> Iterator[JSON]:
    """The values in a JSON value that are no lists and no objects, in order; content blocks by their texts."""
    return json_values.leaves(value, content_text)


def parsed(value: JSON) -> JSON:
    """A tool's answer as JSON: text that is an object or a list is read as one, all else stays as it is."""
    value = content_text(value)
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") and len(value) <= _LONGEST:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def meanings(value: JSON) -> frozenset[Hashable]:
    """What a value that is a date or a number, and nothing else, means however it is spelled; empty for all else, and
    for what can be read in several ways."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return frozenset()
    text = as_text(value).strip()
    found = spelled(text) if len(text) <= 60 else []
    whole = len(found) == 1 and not text[: found[0].start].strip(" $€£+") and not text[found[0].end :].strip(" $€£%")
    if not whole or (found[0].kind == "date" and len(found[0].means) > 1):
        return frozenset()
    if isinstance(value, int | float):
        return frozenset([Decimal(str(value)).normalize()])
    return frozenset(found[0].means)


def _needle(value: JSON) -> str:
    return fold(as_text(value)).strip()


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
        self._meanings: dict[Hashable, int] = {}
        self._read_for_meaning = 0
        self._size = 0
        self._read = 0

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        folded = fold(text)
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
            if end_of(needle, self._texts[position]) is not None:
                self._missed.pop(needle, None)
                self._found[needle] = position
                return position
        if len(self._missed) + len(self._found) > _REMEMBERED:
            self._missed.clear()
            self._found.clear()
        self._missed[needle] = len(self._texts)
        return None

    def first_meaning(self, means: Collection[Hashable]) -> int | None:
        """The position of the first text that holds a date or a number of one of these meanings, however spelled."""
        if means:
            for position in range(self._read_for_meaning, len(self._texts)):
                for one in spelled(self._texts[position]):
                    if one.kind == "number" or len(one.means) == 1:
                        for mean in one.means:
                            self._meanings.setdefault(mean, position)
                            if one.kind == "date" and isinstance(mean, tuple):  # the day without its year
                                self._meanings.setdefault((None, *mean[1:]), position)
            self._read_for_meaning = len(self._texts)
        return min((self._meanings[mean] for mean in means if mean in self._meanings), default=None)

    def _worth_reading(self, needle: str, start: int) -> Sequence[int]:
        words = INDEXED.findall(needle)
        if not words or (self._words is None and self._read <= _SCANS * self._size):
            return range(start, len(self._texts))
        if self._words is None:
            self._words = defaultdict(list)
        for position in range(self._indexed, len(self._texts)):
            for word in set(INDEXED.findall(self._texts[position])):
                self._words[word].append(position)
        self._indexed = len(self._texts)
        # An occurrence begins and ends at token boundaries, so each of its words is a whole word of the text.
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
                        self._tools.add(self._words_found(step, response, users, tools - 1))
                        self._tool_steps.append(step.number)
        self._counts = (users, tools)

    def user_turn(self, value: JSON, common: Collection[str] = (), listed: Collection[str] = ()) -> int | None:
        """The first turn by whose end all of the value's leaves stand in the users' messages; None where one does not,
        or tells nothing (`tells`, with the `common` words) without being one of the `listed` values."""
        return self._first(value, common, listed, self._user_turn)

    def tool_step(self, value: JSON, common: Collection[str] = (), listed: Collection[str] = ()) -> int | None:
        """The number of the first step by whose end all of the value's leaves stand in tool results that are no
        errors."""
        return self._first(value, common, listed, self._tool_step)

    def names(self, value: JSON, means: Collection[Hashable], *, turn: int, step: int) -> bool:
        """Whether a value, or a date or number of these meanings, stands in a user's message up to and with those of a
        turn, or in a tool's result before a step of the dialogue."""
        users, tools = self._counts
        for passages, count, places, last in (
            (self._users, users, self._user_turns, turn),
            (self._tools, tools, self._tool_steps, step - 1),
        ):
            found = (passages.first(_needle(value)), passages.first_meaning(means))
            if any(one is not None and one < count and places[one] <= last for one in found):
                return True
        return False

    def _first(
        self, value: JSON, common: Collection[str], listed: Collection[str], place: Callable[[JSON], int | None]
    ) -> int | None:
        places: list[int] = []
        for leaf in leaves(value):
            if leaf is None or isinstance(leaf, bool):
                continue  # nobody spells these out; alone they come from nowhere
            needle = _needle(leaf)
            found = place(leaf) if needle in listed or _tells(leaf, common) else None
            if found is None:
                return None
            places.append(found)
        return max(places, default=None)

    def _user_turn(self, value: JSON) -> int | None:
        needle, (count, _) = _needle(value), self._counts
        if "\n" in needle:  # it may begin in one message and end in the next
            end = end_of(needle, self._users.joined(count))
            if end is None:
                return None
            for position, length in enumerate(self._users.lengths(count)):
                end -= length + 1
                if end < 0:
                    return self._user_turns[position]
        found = _earliest(self._users, needle, value, count)
        return None if found is None else self._user_turns[found]

    def _tool_step(self, value: JSON) -> int | None:
        found = _earliest(self._tools, _needle(value), value, self._counts[1])
        return None if found is None else self._tool_steps[found]

    def _words_found(self, step: Step, response: ToolCallResponse, users: int, tools: int) -> str:
        """What an answer is a source of: nothing where it is an error or found nothing. Where it only repeats the call,
        what the first `users` messages or the first `tools` answers said: what the agent made up is not the tool's."""
        if is_error(response):
            return ""
        answer = parsed(response.response)
        asked = next((use.arguments for use in step.tool_uses if use.response is response), None)
        if finds_nothing(answer, asked):
            return ""
        if not only_repeats(answer, asked):
            return _words_of(response.response)
        return "\n".join(
            as_text(one)
            for one in leaves(answer)
            if _earliest(self._users, _needle(one), one, users) is not None
            or _earliest(self._tools, _needle(one), one, tools) is not None
        )

    def _is_latest(self) -> bool:
        return self._counts == (len(self._users), len(self._tools))


def _tells(leaf: JSON, common: Collection[str]) -> bool:
    """Whether a value tells something: a code such as `IT` does in capitals alone."""
    return leaf not in CODE_WORDS and tells(_needle(leaf), common=common)


def stands_in(value: JSON, text: str, common: Collection[str] = (), listed: Collection[str] = ()) -> bool:
    """Whether all of the value's leaves stand in one text, and each tells something (`DialogueWords.user_turn`)."""
    passages = Passages()
    passages.add(text)
    found = [leaf for leaf in leaves(value) if leaf is not None and not isinstance(leaf, bool)]
    return bool(found) and all(
        (_needle(leaf) in listed or _tells(leaf, common)) and _earliest(passages, _needle(leaf), leaf, 1) is not None
        for leaf in found
    )


def _earliest(passages: Passages, needle: str, value: JSON, count: int) -> int | None:
    """Where the value first stands among the first `count` texts: as it is, without a leading #, or (a date, a number,
    an id) in another spelling."""
    found = [passages.first(needle), passages.first(needle.lstrip("#"))]
    known = [place for place in found if place is not None and place < count]
    if not known:
        found = [passages.first(other) for other in id_spellings(needle.lstrip("#"))]
        known = [place for place in found if place is not None and place < count]
    if not known and (means := meanings(value)):
        place = passages.first_meaning(means)
        known = [] if place is None or place >= count else [place]
    return min(known, default=None)


def _words_of(answer: JSON) -> str:
    """What a tool's answer says: of JSON its values, one a line, and those keys that hold a digit, which are ids. Other
    keys are the tool's own words."""
    read = parsed(answer)
    if isinstance(read, Mapping | list):
        return "\n".join([*(as_text(leaf) for leaf in leaves(read)), *_ids_among_keys(read)])
    return as_text(answer)


def _ids_among_keys(value: JSON) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            yield from (key for key in map(str, one) if any(map(str.isdigit, key)))
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


__all__ = ["DialogueWords", "Passages", "as_text", "leaves", "meanings", "occurs", "parsed", "stands_in"]
