"""When two calls of a tool are the same call (method.md §7); apart so that replay, caches and fidelity cannot disagree about it."""

from __future__ import annotations

from collections.abc import Mapping

from cm2_agent.messages import JSON, canonical_json


def call_key(name: str, arguments: Mapping[str, JSON], parameters: Mapping[str, JSON]) -> str:
    """A key that structurally equal calls share: the order of keys, the spelling of a number (1, 1.0) and whether an argument that has a
    default in the schema is spelled out do not matter; 1 and "1" differ, so do true and 1."""
    return canonical_json([name, _plain(dict(arguments), parameters)])


def _plain(value: JSON, schema: JSON) -> JSON:
    shape = schema if isinstance(schema, Mapping) else {}
    if isinstance(value, Mapping):
        properties = shape.get("properties") if isinstance(shape.get("properties"), Mapping) else {}
        given = {key: _plain(item, properties.get(key)) for key, item in value.items()}
        absent = {key: inner["default"] for key, inner in properties.items() if isinstance(inner, Mapping) and "default" in inner}
        return {**absent, **given}
    if isinstance(value, list):
        return [_plain(item, shape.get("items")) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


__all__ = ["call_key"]
