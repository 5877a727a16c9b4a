"""Scripted simulators behind a real HTTP server: each answers from what the prompt shows and knows no database.

Both make up an answer from the nearest example: the real answer to the most similar call, with the call's arguments put
where that call's were. `credulous` always does; `wary` fails for an id that nobody has mentioned, and where it is told
that its answer cannot be the tool's, as a careful model does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.chat_server import last_message

_IDS = re.compile(r"(^|_)(id|ids|number|code)$")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a simulator was shown: the tool, the calls that were answered (examples and this dialogue's), the dialogue,
    the call."""

    tool: Mapping[str, Any]
    answered: list[dict[str, Any]]
    dialogue: list[str]
    arguments: Mapping[str, Any]
    again: bool
    """Whether the last reply could not be used."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Shown:
        data, rest = re.split(r"^END OF DATA [0-9a-f]{32}$", last_message(body), maxsplit=1, flags=re.MULTILINE)
        lines = [json.loads(line) for line in data.split("\n") if line]
        return cls(
            tool=next(line for line in lines if line["part"] == "tool"),
            answered=[line for line in lines if line["part"] in ("example", "answered")],
            dialogue=[line["content"] for line in lines if line["part"] == "dialogue"],
            arguments=json.loads(next(line for line in rest.split("\n") if line.startswith("{")))["arguments"],
            again="Your last reply could not be used." in rest,
        )

    @property
    def alike(self) -> list[dict[str, Any]]:
        """The successful calls of the same tool, the most similar first."""
        mine = [one for one in self.answered if one["tool"] == self.tool["name"] and "error" not in one]
        asked = set(map(json.dumps, _leaves(self.arguments)))
        return sorted(mine, key=lambda one: -len(asked & set(map(json.dumps, _leaves(one["arguments"])))))

    def unheard(self) -> tuple[str, str] | None:
        """An argument that names a thing by an id which stands nowhere: its key and value."""
        told = "\n".join([*self.dialogue, *map(json.dumps, self.answered)])
        for key, value in _named(self.arguments):
            if isinstance(value, str) and _IDS.search(key) and value not in told:
                return key, value
        return None


def credulous(shown: Shown) -> dict[str, Any]:
    """The nearest example's answer, or one made of the tool's schema, with the arguments of the call."""
    if shown.alike:
        near = shown.alike[0]
        return {"result": _with(near["result"], near["arguments"], shown.arguments), "error": None}
    schema = shown.tool.get("result_schema")
    return {
        "result": "Done." if schema is None else _made(schema, schema, "", dict(_named(shown.arguments))),
        "error": None,
    }


def wary(shown: Shown) -> dict[str, Any]:
    """The same, but an id that nobody mentioned is not found, and a call whose answer is not allowed is refused."""
    unheard = shown.unheard()
    if unheard is None and shown.again:
        return {"result": None, "error": "Error: Invalid arguments"}
    if unheard is None:
        return credulous(shown)
    thing = _IDS.sub("", unheard[0]).replace("_", " ").strip().capitalize() or "Item"
    return {"result": None, "error": f"Error: {thing} {unheard[1]} not found"}


def _leaves(value: Any) -> Iterator[Any]:
    return (leaf for _, leaf in _named(value))


def _named(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _named(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, key)
    else:
        yield key, value


def _with(result: Any, before: Mapping[str, Any], now: Mapping[str, Any]) -> Any:
    """The result with the values of one call's arguments replaced by the other's."""
    changed = {
        value: now[key]
        for key, value in before.items()
        if isinstance(value, str) and isinstance(now.get(key), str) and value != now[key]
    }

    def put(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: put(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [put(inner) for inner in value]
        return changed.get(value, value) if isinstance(value, str) else value

    return put(result)


def _made(schema: Mapping[str, Any], root: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> Any:
    """A value of the schema, with the call's arguments where their names fit."""
    if "$ref" in schema:
        return _made(root["$defs"][schema["$ref"].rpartition("/")[2]], root, key, known)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return _made(schema[choice][0], root, key, known)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return known[key] if known.get(key) in schema["enum"] else schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: _made(inner, root, name, known) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return []
    if kind in ("integer", "number"):
        return known[key] if isinstance(known.get(key), int | float) else 0
    if kind == "boolean":
        return False
    return known[key] if isinstance(known.get(key), str) else "unknown"


__all__ = ["Shown", "credulous", "wary"]
