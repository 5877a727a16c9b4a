"""When two calls of a tool are the same call (docs/method.md §7): replay, caches and the simulator's evaluation share
this key.

Every value gets one short text, its form, made from the leaves up; a long form is replaced by its hash. What equals the
default that the schema gives is left out of its object, so that it does not matter whether it was spelled out. Where a
schema offers alternatives (anyOf), the first that fits the value is the one whose defaults count, and which one it was
is part of the form."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

from cm2_agent.types.json_values import JSON

_LONG = 100
"""Characters from which on a form is its hash: a deep value's would otherwise be copied at every level."""
_HOPS = 200
"""How many schemas are looked at for one value before the rest is let be: a schema may refer to itself."""

_Steps: TypeAlias = Generator[tuple[Any, Any], str, str]


def call_key(name: str, arguments: Mapping[str, JSON], parameters: Mapping[str, JSON]) -> str:
    """A key that structurally equal calls share: the tool's name and the form of the arguments, in ASCII.

    The order of keys, the spelling of a number (1, 1.0, 1e0; -0.0 is 0), and whether an argument that has a default in
    the schema is spelled out do not matter, at any depth; 1 and "1" differ, so do 1 and true, and 2**53 and 2**53 + 1.
    Never raises, whatever values and schema it is given. The time grows with the size of the arguments, times the
    alternatives that the schema offers for one value.

    >>> schema = {"properties": {"limit": {"type": "integer", "default": 5}}}
    >>> call_key("find", {"q": "tea", "limit": 5.0}, schema) == call_key("find", {"q": "tea"}, schema)
    True
    """
    return f"{name if name.isascii() and name.isidentifier() else _text(name)}{_Forms(parameters).form(arguments)}"


class _Forms:
    """The forms of values under one schema, at whose root its references point."""

    def __init__(self, root: JSON) -> None:
        self.root = root
        self.known: dict[tuple[int, int], str] = {}
        self.held: list[Any] = []  # an id says who it is only while its owner lives

    def form(self, value: JSON) -> str:
        """What `_steps` returns, without recursion: how deep a value goes is its sender's choice."""
        stack: list[tuple[tuple[int, int], _Steps]] = []
        answer = self._begin(stack, value, self.root)
        while stack:
            place, steps = stack[-1]
            try:
                asked = next(steps) if answer is None else steps.send(answer)
            except StopIteration as done:
                self.known[place] = answer = done.value
                stack.pop()
            else:
                answer = self._begin(stack, *asked)
        assert answer is not None
        return answer

    def _begin(self, stack: list[tuple[tuple[int, int], _Steps]], value: Any, schema: Any) -> str | None:
        """The form at once, or None where its steps were put on the stack."""
        if not isinstance(value, Mapping | list | tuple):
            return _leaf(value)
        place = (id(value), id(schema))
        if place not in self.known:
            self.known[place] = "<within itself>"  # what a value that contains itself will find
            self.held += (value, schema)
            stack.append((place, self._steps(value, schema)))
            return None
        return self.known[place]

    def _steps(self, value: Any, schema: Any) -> _Steps:
        """Asks for the forms of the members, is sent them, and returns the form of the whole."""
        nodes, tag = self._nodes(value, schema)
        parts: list[str] = []
        if not isinstance(value, Mapping):
            for place, item in enumerate(value):
                parts.append((yield item, _of_place(nodes, place)))
            return _short(f"{tag}[{','.join(parts)}]")
        for key, item in value.items():
            own = _of_key(nodes, key)
            form = yield item, own
            giver = self._giver(own)
            if giver is None or form != (yield giver["default"], own):
                parts.append(f"{_leaf(key)}:{form}")
        return _short(f"{tag}{{{','.join(sorted(parts))}}}")

    def _nodes(self, value: Any, schema: Any) -> tuple[list[Mapping[str, Any]], str]:
        """The schemas that hold for a value: this one, those it refers to, and the alternatives chosen; and which those
        were."""
        nodes: list[Mapping[str, Any]] = []
        seen: set[int] = set()
        tag = ""
        waiting = [schema]
        while waiting and len(seen) < _HOPS:
            node = waiting.pop()
            if not isinstance(node, Mapping) or id(node) in seen:
                continue
            seen.add(id(node))
            nodes.append(node)
            for union in ("oneOf", "anyOf"):
                for number, choice in enumerate(_list(node.get(union))):
                    if self._fits(value, choice):
                        tag += f"{number}|"
                        waiting.append(choice)
                        break
            waiting += [*reversed(_list(node.get("allOf"))), self._target(node.get("$ref"))]
        return nodes, tag

    def _fits(self, value: Any, schema: Any, depth: int = 2) -> bool:
        """Whether a value may be meant by an alternative, as far as types, constants and required keys say, down to a
        depth."""
        seen: set[int] = set()
        waiting = [schema]
        while waiting and len(seen) < _HOPS:
            node = waiting.pop()
            if not isinstance(node, Mapping) or id(node) in seen:
                continue
            seen.add(id(node))
            if not _admits(node, value):
                return False
            if isinstance(value, Mapping):
                properties = _mapping(node.get("properties"))
                if any(key not in value for key in _list(node.get("required")) if isinstance(key, str)):
                    return False
                if node.get("additionalProperties") is False and any(key not in properties for key in value):
                    return False
                below = [(item, properties[key]) for key, item in value.items() if key in properties] if depth else []
            else:  # a list is as its first item
                below = (
                    [(value[0], _of_place([node], 0))] if depth and isinstance(value, list | tuple) and value else []
                )
            if not all(self._fits(item, own, depth - 1) for item, own in below):
                return False
            waiting += [*_list(node.get("allOf")), self._target(node.get("$ref"))]
        return True

    def _giver(self, schema: Any) -> Mapping[str, Any] | None:
        """The schema that says what an absent value is: this one, or one it refers to."""
        for _ in range(_HOPS):
            if not isinstance(schema, Mapping) or "default" in schema:
                return schema if isinstance(schema, Mapping) else None
            schema = self._target(schema.get("$ref"))
        return None

    def _target(self, reference: Any) -> Any:
        """What a `$ref` within the schema points to, None where it points nowhere."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        found = self.root
        for step in unquote(reference[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping):
                found = found.get(step)
            elif isinstance(found, list) and step.isdecimal() and len(step) < 9 and int(step) < len(found):
                found = found[int(step)]
            else:
                return None
        return found


def _of_key(nodes: list[Mapping[str, Any]], key: Any) -> Any:
    for node in nodes:
        properties = node.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            return properties[key]
    return next((more for node in nodes if isinstance(more := node.get("additionalProperties"), Mapping)), None)


def _of_place(nodes: list[Mapping[str, Any]], place: int) -> Any:
    for node in nodes:
        first = node.get("prefixItems", node.get("items"))  # `items` was a list of schemas before draft 2020-12
        if isinstance(first, list) and place < len(first):
            return first[place]
        if isinstance(node.get("items"), Mapping):
            return node["items"]
    return None


def _admits(node: Mapping[str, Any], value: Any) -> bool:
    """Whether a schema's own type, constant and enumeration allow a value; composite constants are not compared."""
    named = node.get("type")
    kinds = [named] if isinstance(named, str) else [kind for kind in _list(named) if isinstance(kind, str)]
    if kinds and not any(_is(kind, value) for kind in kinds):
        return False
    choices = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(choices, list) or isinstance(value, Mapping | list | tuple):
        return True
    return any(_leaf(choice) == _leaf(value) for choice in choices if not isinstance(choice, Mapping | list | tuple))


def _is(kind: str, value: Any) -> bool:
    if kind in ("integer", "number"):
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return numeric and (kind == "number" or isinstance(value, int) or value.is_integer())
    types: dict[str, Any] = {
        "object": Mapping,
        "array": list | tuple,
        "string": str,
        "boolean": bool,
        "null": type(None),
    }
    return kind not in types or isinstance(value, types[kind])


def _leaf(value: Any) -> str:
    """The form of a value without members; a value that JSON does not know by its type and its own representation."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        whole = int(value)  # in base 16 beyond 10**15: Python refuses to write out decimals of thousands of digits
        return str(whole) if abs(whole) < 10**15 else _short(hex(whole))
    if isinstance(value, float):
        return repr(float(value))
    try:
        shown = repr(value)
    except Exception:
        shown = ""
    return f"<{type(value).__name__} {_text(shown)}>"


def _text(value: str) -> str:
    return _short(json.dumps(value))


def _short(form: str) -> str:
    return form if len(form) <= _LONG else f"#{hashlib.sha256(form.encode()).hexdigest()}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


__all__ = ["call_key"]
