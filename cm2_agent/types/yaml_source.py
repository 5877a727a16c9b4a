"""YAML with line numbers: text to plain data, the line of every key and list entry, and back to text.

What is read is a plain subset, close to YAML 1.2: mappings with text keys, lists, text, true and false, whole and
decimal numbers, null. So `no`, `on`, `1:30`, `007` and `2026-05-20` are text. Refused, with the line: tags, duplicate
keys, keys that are not text, several documents, tabs as indentation, aliases that recurse or blow up."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cm2_agent.types.json_values import JSON

KeyPath: TypeAlias = tuple[str | int, ...]
"""A path of keys and list positions."""

MAX_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 60

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")  # 007 is a name, not a number
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_ODD_BREAKS = re.compile("[\r\x85\u2028\u2029\ufeff]")
_PLAIN_TAGS = ("null", "bool", "int", "float", "str", "map", "seq", "timestamp", "merge", "value")


class YamlError(ValueError):
    """The text is not YAML of this kind. `line` is 1-based."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, kw_only=True)
class Document:
    """Plain data, and the 1-based line of every place in it."""

    data: JSON
    lines: Mapping[KeyPath, int] = field(repr=False)

    def line(self, place: KeyPath) -> int:
        """The line of the place, or of the nearest one around it."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(text: str, scalar: Callable[[str, int], JSON] | None = None) -> Document:
    """Read one document. `scalar(text, line)` may replace a scalar, in quotes or not; it returns the text itself to
    leave it as it is. Raises YamlError."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise YamlError(
            1, f"the file is larger than {MAX_BYTES // 1024} KiB; expected a checklist: split it and include the parts"
        )
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _syntax_error(error) from error
    except RecursionError as error:
        raise YamlError(1, f"nested deeper than {MAX_DEPTH} levels; expected a plain checklist") from error
    if root is None:
        raise YamlError(1, "the file is empty; expected a mapping with name and items")
    reader = _Reader(scalar)
    return Document(data=reader.value(root, (), 0), lines=reader.lines)


def _syntax_error(error: yaml.YAMLError) -> YamlError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if isinstance(error, yaml.reader.ReaderError):
        return YamlError(
            1,
            f"the character {error.character!r} at position {error.position} is not allowed in YAML; remove or"
            " escape it",
        )
    problem = str(getattr(error, "problem", None) or error)
    if "\\t" in problem:
        problem += "; indent with spaces"
    if "but found another document" in problem:
        problem = "a second document begins here; expected one checklist a file"
    return YamlError(mark.line + 1 if mark is not None else 1, f"not YAML: {problem}")


class _Reader:
    def __init__(self, scalar: Callable[[str, int], JSON] | None) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._scalar = scalar
        self._nodes = 0

    def value(self, node: Node, place: KeyPath, depth: int) -> JSON:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise YamlError(
                line,
                f"more than {MAX_NODES} values once its aliases are written out; expected a plain checklist: use fewer"
                " aliases",
            )
        if depth > MAX_DEPTH:
            raise YamlError(
                line, f"nested deeper than {MAX_DEPTH} levels (an alias may contain itself); expected a plain checklist"
            )
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TAGS:
            raise YamlError(
                line, f"the tag {node.tag!r} is not allowed; expected plain values: YAML never makes objects here"
            )
        if isinstance(node, MappingNode):
            return self._mapping(node, place, depth)
        if isinstance(node, SequenceNode):
            return [self.value(child, (*place, index), depth + 1) for index, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        text: str = node.value
        value = text if self._scalar is None else self._scalar(text, line)
        if value is not text:
            return value
        tagged_text = node.tag.endswith(":str") and any(
            pattern.match(text) for pattern in (_NULL, _BOOL, _INT)
        )  # written `!!str 5`
        return text if tagged_text or node.style in ("'", '"', "|", ">") else _plain(text, line)

    def _mapping(self, node: MappingNode, place: KeyPath, depth: int) -> dict[str, JSON]:
        out: dict[str, JSON] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise YamlError(line, "a key is a list or a mapping; expected text")
            key: str = key_node.value
            if key in out:
                raise YamlError(
                    line, f"the key {key!r} is there twice (first on line {self.lines[(*place, key)]}); remove one"
                )
            self.lines[(*place, key)] = line
            out[key] = self.value(value_node, (*place, key), depth + 1)
        return out


def _plain(text: str, line: int) -> JSON:
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    try:
        if _INT.match(text):
            return int(text)
        if _FLOAT.match(text):
            number = float(text)
            if not math.isfinite(number):
                raise ValueError("out of range")
            return number
    except ValueError as error:
        raise YamlError(line, f"the number {text[:40]} cannot be read: {error}") from error
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_plain` or another YAML 1.1 or 1.2 reader would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> ScalarNode:
    # PyYAML folds these line breaks away in its other styles
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _ODD_BREAKS.search(text) else None)


_Dumper.add_representer(str, _text)
# PyYAML's own pattern wants a dot in a float, this reader's does not
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))


def write_yaml(data: JSON) -> str:
    """The data as YAML that `read_yaml`, and any other reader, reads back as it was; keys in their order."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
