"""Attribute values as the dialects read them: JSON written as text, numbers written as text, and lists spread over
numbered keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec

_LONGEST = 1 << 18
"""Characters of the longest definitions of tools that are remembered."""
_BEGINS = frozenset('{["-0123456789tfn \t\n\r')
"""What a JSON text can begin with: most texts on spans are none, and an error costs more than a look."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode  # `json.loads` makes a decoder anew for every text


def parsed(value: JSON) -> JSON:
    """The JSON value that a text holds, where it holds an object, a list or the like; other values as they are. A text
    that is no JSON stays the text."""
    if not isinstance(value, str) or value[:1] not in _BEGINS:
        return value
    try:
        return _decode(value)
    except (ValueError, RecursionError):
        return value


def structure(value: JSON) -> JSON:
    """As `parsed`, but a text that holds a mere number, true, false, null or text stays text: what a tool answered as
    text was text."""
    if isinstance(value, str) and not value.lstrip().startswith(("{", "[")):
        return value
    found = parsed(value)
    return found if isinstance(found, dict | list) else value


def text(value: JSON) -> str | None:
    """The text, None for what is none or is empty."""
    return value if isinstance(value, str) and value else None


def name_of(value: JSON) -> str | None:
    """An id or a name as text: numbers are written out."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(value)


def number(value: JSON) -> int | None:
    """A whole number of 0 or more, None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def counted(**values: JSON) -> dict[str, int]:
    """The numbers among the values, by their names."""
    return {name: found for name, value in values.items() if (found := number(value)) is not None}


def first(attributes: Mapping[str, JSON], *names: str) -> JSON:
    """The first of these attributes that is there."""
    for name in names:
        value = attributes.get(name)
        if value is not None:
            return value
    return None


def items(value: JSON) -> list[JSON]:
    """The list that the value is or that its text holds; empty for anything else."""
    found = parsed(value)
    return list(found) if isinstance(found, list | tuple) else []


def numbered(attributes: Mapping[str, JSON], prefix: str) -> list[dict[str, JSON]]:
    """What stands under `PREFIX.0.key`, `PREFIX.1.key`, …: for each number, in their order, its attributes by the rest
    of their names.

    >>> numbered({"m.0.role": "user", "m.1.role": "assistant", "m.x": 1}, "m")
    [{'role': 'user'}, {'role': 'assistant'}]
    """
    found: dict[int, dict[str, JSON]] = {}
    start = prefix + "."
    for name, value in attributes.items():
        if name.startswith(start):
            place, dot, rest = name[len(start) :].partition(".")
            if dot and place.isascii() and place.isdigit():
                found.setdefault(int(place), {})[rest] = value
    return [found[place] for place in sorted(found)]


def definitions(value: JSON) -> tuple[ToolSpec, ...]:
    """The tools of an attribute. An agent offers the same ones at every call: those of a text that was read lately are
    the same objects."""
    return _of_text(value) if isinstance(value, str) and len(value) <= _LONGEST else tool_specs(items(value))


@lru_cache(64)
def _of_text(text: str) -> tuple[ToolSpec, ...]:
    return tool_specs(items(text))


def tool_specs(values: Sequence[JSON]) -> tuple[ToolSpec, ...]:
    """The tools among the definitions, in the conventions' form, OpenAI's or Anthropic's; what is none is left out."""
    specs: list[ToolSpec] = []
    for value in values:
        data: Any = parsed(value)
        inner = data.get("function", data) if isinstance(data, Mapping) else None
        if not isinstance(inner, Mapping) or not text(inner.get("name")):
            continue
        schema = parsed(first(inner, "parameters", "input_schema", "inputSchema", "json_schema"))
        specs.append(
            ToolSpec(
                name=inner["name"],
                description=text(inner.get("description")) or "",
                parameters=schema if isinstance(schema, dict) else {},
            )
        )
    return tuple(specs)


__all__ = ["counted", "first", "items", "name_of", "number", "numbered", "parsed", "structure", "text", "tool_specs"]
