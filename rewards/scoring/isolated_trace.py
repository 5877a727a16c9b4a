"""The copy of a trace that check functions are given, so that one that changes what it sees changes nothing else.

Dataclasses are frozen, but the JSON in them is not, and Python lets a function change even what is frozen. So functions
see copies of what they look at, made when they look, and these are compared with the originals afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

from cm2_agent.types.dialogue_words import DialogueWords
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.scope import CallView, Scope
from cm2_agent.types.trace import RunEnd, Step, Trace, Turn

_T = TypeVar("_T")
_ATOMS = frozenset({str, int, float, bool, type(None)})
_FIELDS: dict[type, tuple[str, ...]] = {}
_MADE_LATE = ("input", "tools")
"""Of a model call: its prompt holds the whole dialogue so far, and few checks look at it."""


class IsolatedTrace(Trace):
    """A trace with the content of another and none of its objects."""

    def __new__(cls, original: Trace | None = None, **given: Any) -> Any:
        """A changed copy (`dataclasses.replace`) is a plain trace."""
        return Trace(**given) if given else super().__new__(cls)

    def __init__(self, original: Trace) -> None:
        self.__dict__.update(id=original.id, outcomes=dict(original.outcomes))
        self.__dict__.update(_original=original, _copies={}, _scopes={})

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        return self._copy(self._of.runs)

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        return self._copy(self._of.turns)

    @cached_property
    def attributes(self) -> dict[str, JSON]:
        return self._copy(self._of.attributes)

    @cached_property
    def run_ends(self) -> tuple[RunEnd, ...]:
        return self._copy(self._of.run_ends)

    @property
    def words(self) -> DialogueWords:
        return self._of.words

    @property
    def system(self) -> str:
        return self._of.system

    def scope(self, turn: int | None) -> Scope:
        scopes: dict[int | None, _IsolatedScope] = self.__dict__["_scopes"]
        if turn not in scopes:
            scopes[turn] = _IsolatedScope(self._of.scope(turn), self.__dict__["_copies"])
        return scopes[turn]

    def user_text(self, turn: int | None, *, alone: bool = False) -> str:
        return self._of.user_text(turn, alone=alone)

    @property
    def is_unchanged(self) -> bool:
        """Whether all that was handed out is still as it was."""
        same = _Comparison()
        return (
            same.holds(self.id, self._of.id)
            and same.holds(self.outcomes, dict(self._of.outcomes))
            and all(scope.is_unchanged(same) for scope in self.__dict__["_scopes"].values())
            and all(
                same.holds(self.__dict__[name], getattr(self._of, name))
                for name in ("runs", "turns", "attributes", "run_ends", "messages", "steps")
                if name in self.__dict__
            )
        )

    @property
    def _of(self) -> Trace:
        original: Trace = self.__dict__["_original"]
        return original

    def _copy(self, value: _T) -> _T:
        return _copied(value, self.__dict__["_copies"])


class _IsolatedScope(Scope):
    """A scope whose calls and steps are copied when somebody looks at them. Of replies views give the texts alone."""

    def __init__(self, original: Scope, copies: dict[int, Any]) -> None:
        self.__dict__.update(_original=original, _copies=copies, _by_agent={})
        self.__dict__.update(replies=original.replies, count=original.count, first=original.first)

    _original: Scope
    _copies: dict[int, Any]
    _by_agent: dict[str, _IsolatedScope]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return _copied(self._original.steps, self._copies)

    @cached_property
    def calls(self) -> tuple[CallView, ...]:
        return _copied(self._original.calls, self._copies)

    def of_agent(self, agent: str | None) -> Scope:
        if agent is None:
            return self
        if agent not in self._by_agent:
            self._by_agent[agent] = _IsolatedScope(self._original.of_agent(agent), self._copies)
        return self._by_agent[agent]

    def is_unchanged(self, same: _Comparison) -> bool:
        seen = [name for name in ("steps", "calls") if name in self.__dict__]
        return all(same.holds(self.__dict__[name], getattr(self._original, name)) for name in seen) and all(
            scope.is_unchanged(same) for scope in self._by_agent.values()
        )


class _IsolatedCall(ModelCall):
    """A model call whose prompt is copied when somebody looks at it."""

    _original: ModelCall
    _copies: dict[int, Any]

    @cached_property
    def input(self) -> tuple[Message, ...]:
        return _copied(self._original.input, self._copies)

    @cached_property
    def tools(self) -> tuple[ToolSpec, ...]:
        return _copied(self._original.tools, self._copies)


def _copied(value: _T, copies: dict[int, Any]) -> _T:
    """A deep copy of JSON and of frozen dataclasses. What occurs twice is copied once."""
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    items: Any
    made: Any = copies.get(id(value))
    if made is not None:
        return made  # type: ignore[no-any-return]  # of the type that went in
    if kind is tuple or kind is list:
        if kind is tuple and not value:
            return value
        items = value
        made = kind([one if type(one) in _ATOMS else _copied(one, copies) for one in items])
    elif isinstance(value, dict):
        made = {key: one if type(one) in _ATOMS else _copied(one, copies) for key, one in value.items()}
    elif kind is ModelCall:
        made = object.__new__(_IsolatedCall)
        made.__dict__.update(
            {name: _copied(one, copies) for name, one in value.__dict__.items() if name not in _MADE_LATE}
        )
        made.__dict__.update(_original=value, _copies=copies)
    elif kind in _FIELDS or is_dataclass(value):
        made = object.__new__(kind)
        own, new = value.__dict__, made.__dict__
        for name in _FIELDS.get(kind) or _fields(kind):
            one = own[name]
            new[name] = one if type(one) in _ATOMS else _copied(one, copies)
    else:  # of some other type, which JSON has not: nobody knows how to copy it
        made = value
    copies[id(value)] = made
    return made  # type: ignore[no-any-return]  # of the type that went in


class _Comparison:
    """Compares copies with originals, each once."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def holds(self, made: Any, original: Any) -> bool:
        if made is original:
            return True
        kind: Any = dict if isinstance(original, dict) else type(original)
        expected: Any = _IsolatedCall if kind is ModelCall else kind
        if type(made) is not expected:
            return False
        if kind in _ATOMS:
            return bool(made == original)
        if (id(made), id(original)) in self._seen:
            return True
        self._seen.add((id(made), id(original)))
        if kind is tuple or kind is list:
            return len(made) == len(original) and all(map(self.holds, made, original))
        if kind is dict:
            return list(made) == list(original) and all(map(self.holds, made.values(), original.values()))
        if kind is ModelCall:
            return self._same_fields(made, original, [name for name in _fields(kind) if name in made.__dict__])
        return is_dataclass(kind) and self._same_fields(made, original, _fields(kind))

    def _same_fields(self, made: Any, original: Any, names: Sequence[str]) -> bool:
        own, given = made.__dict__, original.__dict__
        for name in names:
            one = own.get(name, self)  # no field holds this comparison
            if one is not given[name] and not self.holds(one, given[name]):
                return False
        return True


def _fields(kind: Any) -> tuple[str, ...]:
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple(one.name for one in fields(kind))
    return _FIELDS[kind]


__all__ = ["IsolatedTrace"]
