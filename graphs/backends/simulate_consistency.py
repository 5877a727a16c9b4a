"""Facts that a dialogue's tools have stated so far, and whether a new answer contradicts them.

A fact is a scalar under (entity, field). An entity is an object that names itself: by `id`; by `KIND_id` or
`KIND_number`, where KIND is what the tool, or the key that holds the object, is called (an order in `get_order`, in
`orders`); by an id that it is held under; by `code`; by `email`. The top-level object of an answer that has no id is
what the call's id arguments name. The call's other arguments belong to the entity, unless the object repeats them: a
price in euros does not contradict one in dollars. Ids of other things (an order's `user_id`) are facts like any other.
A false alarm costs a dialogue, so whatever is not clear is no fact."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest, reads_only

Facts: TypeAlias = dict[tuple[str, str], JSON]
"""Scalars by (entity, field), both spelled out: `order_id=7`, `address.city`."""

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_ALIKE = frozenset(
    {"detail", "info", "information", "status", "summary", "record", "data", "by", "id", "number", "email", "code"}
)
"""Words of a tool's name that do not make its answer one about something else than its id argument names."""


def same_answer(log: CallLog, request: ToolRequest) -> ToolAnswer | None:
    """What the same call was answered since the last write; None where it was not asked. Injected faults are not
    remembered."""
    key, writes_before = request.key, log.writes_before
    for entry in reversed(log.entries):
        if entry.writes_before != writes_before:
            return None
        if entry.answer.fault is None and entry.request.key == key:
            return replace(entry.answer, backend="simulate")
    return None


def known_facts(log: CallLog) -> Facts:
    """The facts that hold: those of the answers since the last write, its own among them. The first value told
    stays."""
    writes_before, known = log.writes_before, Facts()
    for entry in log.entries:
        changed = not reads_only(entry.request.tool) and not entry.answer.error
        if entry.writes_before + changed == writes_before and not entry.answer.error and entry.answer.fault is None:
            for fact, value in facts_of(entry.request, entry.answer.content).items():
                known.setdefault(fact, value)
    return known


def contradictions(log: CallLog, request: ToolRequest, content: str | list[JSON]) -> tuple[str, ...]:
    """What a new answer says otherwise than the facts that hold, a sentence each. A write may change anything."""
    if not reads_only(request.tool):
        return ()
    new = facts_of(request, content)
    if not new:
        return ()
    known = known_facts(log)
    return tuple(
        f"{field} of {entity} was {canonical_json(known[entity, field])} before, now it is {canonical_json(value)}"
        for (entity, field), value in new.items()
        if (entity, field) in known and not _same(known[entity, field], value)
    )


def facts_of(request: ToolRequest, content: str | list[JSON]) -> Facts:
    """The facts of one answer. What it gives two values for is none."""
    if isinstance(content, str):
        texts = [content]
    else:
        texts = [
            block["text"] for block in content if isinstance(block, Mapping) and isinstance(block.get("text"), str)
        ]
    found, unclear = Facts(), set()
    for text in texts:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        for fact, stated in _objects(request, value):
            if fact in found and not _same(found[fact], stated):
                unclear.add(fact)
            found.setdefault(fact, stated)
    return {fact: value for fact, value in found.items() if fact not in unclear}


def _objects(request: ToolRequest, value: JSON) -> Iterator[tuple[tuple[str, str], JSON]]:
    """Facts of every object that names itself, however deep; `path` is the keys that an object lies under."""
    waiting: list[tuple[JSON, tuple[str, ...], bool]] = [(value, (), True)]
    while waiting:
        at, path, top = waiting.pop()
        if isinstance(at, list):
            waiting += [(item, path, False) for item in reversed(at)]
        elif isinstance(at, Mapping):
            entity = _own(request, at, path) or (_named_by(request, at) if top else None)
            if entity is not None:
                yield from (((entity, field), value) for field, value in _scalars(at))
            waiting += [(item, (*path, key), False) for key, item in reversed(list(at.items()))]


def _scalars(value: Mapping[str, JSON], above: str = "") -> Iterator[tuple[str, JSON]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            if not any(_is_id(inner) for inner in item):  # an object of its own otherwise
                yield from _scalars(item, f"{above}{key}.")
        elif item is not None and not isinstance(item, list):
            yield f"{above}{key}", item


def _own(request: ToolRequest, value: Mapping[str, JSON], path: tuple[str, ...]) -> str | None:
    """The object's own name; None where it has none, or more than one could be it."""
    ids = {key: item for key, item in value.items() if _is_id(key) and _names(item)}
    keyed = [key for key, item in ids.items() if path and str(item) == path[-1]]
    if keyed:  # {"7": {"order_id": 7, …}}: what it is called stands above
        path = path[:-1]
    held = "_".join(_words(path[-1])) if path else None
    if keyed and keyed != ["id"]:
        return _entity(request, value, {keyed[0]: ids[keyed[0]]}) if len(keyed) == 1 else None
    if "id" in ids:
        asked = [
            name
            for name, given in request.arguments.items()
            if _is_id(name) and _kind(name) and str(given) == str(ids["id"])
        ]
        name = f"{held}_id" if held else asked[0] if len(asked) == 1 else f"{request.tool.name}_id"
        return _entity(request, value, {name: ids["id"]}, key="id")
    about = frozenset(_words(path[-1] if path else request.tool.name))
    own = [key for key in ids if _kind(key) and _kind(key) <= about]
    if len(own) == 1:
        (key,) = own
        dated = (
            {"date": value["date"]} if _words(key)[-1] == "number" and _names(value.get("date")) else {}
        )  # a flight leaves every day
        return _entity(request, value, {key: ids[key], **dated})
    if not own and list(ids) == ["email"]:
        return _entity(request, value, ids)
    if not own and list(ids) == ["code"]:
        return _entity(request, value, {f"{held or request.tool.name}_code": ids["code"]}, key="code")
    return None


def _named_by(request: ToolRequest, value: Mapping[str, JSON]) -> str | None:
    """What the call's id arguments name, where the tool is about that: `get_order_status(order_id)`, not
    `get_order_invoice(order_id)`."""
    words = _words(request.tool.name)
    own = {
        key: item
        for key, item in request.arguments.items()
        if _is_id(key) and _names(item) and _kind(key) <= frozenset(words)
    }
    kinds = frozenset().union(*map(_kind, own), *map(_words, value))
    if not own or any(_is_id(key) for key in value) or not frozenset(words[1:]) <= _ALIKE | kinds:
        return None
    return _entity(
        request,
        value,
        {key if _kind(key) else f"{request.tool.name}_{key}": item for key, item in own.items()},
        key=next(iter(own)),
    )


def _entity(request: ToolRequest, value: Mapping[str, JSON], own: Mapping[str, JSON], key: str | None = None) -> str:
    """The entity's name, with the arguments that it may depend on. `key` is what the object or the call calls its id,
    if that is not what the entity is named by."""
    named = frozenset(str(item) for item in own.values())
    asked = {
        name: given
        for name, given in request.arguments.items()
        if name not in own
        and given is not None
        and not (name in value and _same(value[name], given))
        and not (key is not None and _is_id(name) and str(given) in named)
    }
    parts = ", ".join(f"{name}={item}" for name, item in sorted(own.items()))
    return f"{parts} given {canonical_json(asked)}" if asked else parts


@lru_cache(maxsize=4096)
def _is_id(key: str) -> bool:
    words = _words(key)
    return key in ("id", "code", "email") or (len(words) > 1 and words[-1] in ("id", "number"))


@lru_cache(maxsize=4096)
def _kind(key: str) -> frozenset[str]:
    """What an id is an id of: `order` for order_id."""
    return frozenset(_words(key)) - {"id", "number", "code", "email"}


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case and without a plural's s."""
    words = (word.lower() for word in _WORDS.findall(name))
    return tuple(
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")) else word
        for word in words
    )


def _names(value: JSON) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _same(one: JSON, other: JSON) -> bool:
    """Equal as JSON: 1 is 1.0, but not true and not "1"."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


__all__ = ["Facts", "contradictions", "facts_of", "known_facts", "same_answer"]
