"""Checks of what a reply says: that there is one, that it matches a pattern, that it states a tool's value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cm2_agent.types.check_specs import ReplyMatches, ReplyStates, compile_pattern
from cm2_agent.types.dialogue_words import as_text, leaves, parsed
from cm2_agent.types.json_values import JSON
from cm2_agent.types.negation import Negation
from cm2_agent.types.scope import CallView, Reply
from cm2_agent.types.view import View

from .check_kinds import LastingCheck
from .statements import Known, ReplyText

_MOST_VALUES = 1000


class ReplyMatchesCheck(LastingCheck):
    def __init__(self, data: ReplyMatches, *, forbidden: bool = False) -> None:
        self._pattern = compile_pattern(data.reply_matches)
        self._denied = (data.negated or ("allowed" if forbidden else "refused")) == "allowed"

    def first_step(self, view: View) -> int | None:
        return next((reply.step for reply in replies_so_far(view) if self._says(utf8(reply.text))), None)

    def _says(self, text: str) -> bool:
        if self._denied or self._pattern.search(text) is None:
            return self._denied and self._pattern.search(text) is not None
        negation = Negation(text)
        return any(not negation.denies(*found.span()) for found in self._pattern.finditer(text))


class ReplyStatesCheck(LastingCheck):
    """The value is that of the tool's latest successful call before the reply, wherever in the dialogue. `forbidden`:
    any mention of it counts."""

    def __init__(self, data: ReplyStates, *, forbidden: bool = False) -> None:
        self._source = data.reply_states.from_
        self._pattern = None if self._source.pattern is None else compile_pattern(self._source.pattern)
        self._path = None if self._source.path is None else self._source.path.split(".")
        self._forbidden = forbidden

    def first_step(self, view: View) -> int | None:
        replies = replies_so_far(view)
        if not replies:
            return None
        first = 0 if view.turn is None else view.trace.scope(view.turn).first
        calls = list(self._calls(view))
        last = -1
        for reply in replies:
            while last + 1 < len(calls) and calls[last + 1][0] < first + reply.step:
                last += 1
            if last >= 0 and self._states(view, reply, first + reply.step, calls[last][1]):
                return reply.step
        return None

    def _calls(self, view: View) -> Iterator[tuple[int, CallView]]:
        """The tool's successful calls up to the scope's end, each with the number of its step in the dialogue."""
        turns = view.trace.turns if view.turn is None else view.trace.turns[: view.turn + 1]
        for turn in turns:
            scope = view.trace.scope(turn.index)
            own = View(trace=view.trace, turn=turn.index, seen=scope.count)
            for call in scope.calls:
                wanted = call.name == self._source.tool and call.done and call.response is not None
                if wanted and (not self._source.with_ or own.matches(call, self._source.with_)):
                    yield scope.first + call.step, call

    def _states(self, view: View, reply: Reply, step: int, call: CallView) -> bool:
        values = self._values(call)
        if not values:
            return False
        text = ReplyText(utf8(reply.text))
        if self._forbidden:
            return any(text.mentions(value) for value in values)
        known = Known(view.trace, step)
        return all(text.states(value, known, values) for value in values)

    def _values(self, call: CallView) -> list[JSON]:
        read: Any = call.result
        if self._path is not None:
            read = list(_at(parsed(read), self._path))
        found = [leaf for leaf, _ in zip(leaves(read), range(_MOST_VALUES), strict=False)]
        if self._pattern is None:
            return found
        texts = [as_text(read)] if self._path is None else [as_text(leaf) for leaf in found]
        matches = [self._pattern.search(utf8(text)) for text in texts]
        return [
            one.group(1 if self._pattern.groups else 0)
            for one in matches
            if one is not None and one.group(1 if self._pattern.groups else 0)
        ]


def _at(value: JSON, path: list[str]) -> Iterator[JSON]:
    """What stands at a path; nothing where it leads nowhere."""
    if not path:
        yield value
        return
    key, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        for inner in value.values() if key == "*" else [value[key]] if key in value else []:
            yield from _at(inner, rest)
    elif isinstance(value, list):
        if key == "*":
            chosen = value
        else:
            index = int(key) if key.lstrip("-").isdecimal() else len(value)
            chosen = [value[index]] if -len(value) <= index < len(value) else []
        for inner in chosen:
            yield from _at(inner, rest)


def replies_so_far(view: View) -> tuple[Reply, ...]:
    """The replies of the view's scope."""
    return view.trace.scope_of(view.agent, view.turn).replies_by(view.seen)


def utf8(text: str) -> str:
    """Text that RE2 can read: lone surrogates, which a model can emit through broken JSON escapes, become question
    marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


__all__ = ["ReplyMatchesCheck", "ReplyStatesCheck", "replies_so_far", "utf8"]
