"""The words of a tool's own description, which prove nothing where they come back as arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from cm2_agent.types.json_values import JSON
from cm2_agent.types.scope import CallView
from cm2_agent.types.tokens import fold, tokens

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NAME = re.compile(r"[\W_]+")


def own_words(call: CallView, argument: str) -> tuple[frozenset[str], frozenset[str]]:
    """The words of the called tool's name, description and parameters' names; and the values that its schema lists for
    this argument (`enum`, `const`), which are choices to name and not words about the tool."""
    if call.tool is None:
        given = tuple(call.arguments) if isinstance(call.arguments, Mapping) else ()
        return _words(call.name, "", given), frozenset()
    properties = call.tool.parameters.get("properties")
    schema = properties.get(argument) if isinstance(properties, Mapping) else None
    named = tuple(properties) if isinstance(properties, Mapping) else ()
    return _words(call.name, call.tool.description, named), frozenset(_listed(schema, 6))


@lru_cache(1024)
def _words(name: str, description: str, parameters: tuple[str, ...]) -> frozenset[str]:
    named = {word for one in (name, *parameters) for word in _NAME.split(fold(_CAMEL.sub("_", str(one)))) if word}
    words = {*named, *tokens(fold(description)), *(fold(str(one)) for one in (name, *parameters))}
    words |= {word.removesuffix("'s") for word in words}
    return frozenset(words | {f"{word}s" for word in words} | {word.removesuffix("s") for word in words})


def _listed(schema: JSON, depth: int) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth < 0:
        return
    values = schema.get("enum")
    for value in [*(values if isinstance(values, list) else []), schema.get("const")]:
        if isinstance(value, str):
            yield fold(value).strip()
    inner = [schema.get("items")]
    for key in ("anyOf", "oneOf", "allOf"):
        inner += branches if isinstance(branches := schema.get(key), list) else []
    properties = schema.get("properties")
    inner += properties.values() if isinstance(properties, Mapping) else []
    for one in inner:
        yield from _listed(one, depth - 1)


__all__ = ["own_words"]
