"""Arguments of tool calls as values: strict JSON, literals of Python, and text that a tool's schema gives a type."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cm2_agent.models.strict_json import strict_decoder

__all__ = ["argument_types", "json_at", "literal", "python_calls", "typed"]

_LONGEST_CODE = 20_000
"""Characters of a text that is read as Python."""
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_KINDS: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def json_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends. Raises ValueError where there is none, for numbers
    that JSON cannot write, and for a key that an object gives twice."""
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


_DECODER = strict_decoder()


def argument_types(tools: Sequence[Mapping[str, Any]], name: str) -> dict[str, frozenset[str]]:
    """The JSON types that a tool's schema allows for each of its arguments; of those that say nothing, none."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters") or {}
            properties = parameters.get("properties") or {}
            return {key: frozenset(_types(schema, parameters, 0)) for key, schema in properties.items()}
    return {}


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> set[str]:
    if not isinstance(schema, Mapping) or depth > 8:
        return set()
    found: set[str] = set()
    declared = schema.get("type")
    found.update([declared] if isinstance(declared, str) else declared if isinstance(declared, list) else [])
    for union in ("anyOf", "oneOf", "allOf"):
        for choice in schema.get(union) or ():
            found |= _types(choice, root, depth + 1)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        found |= _types((root.get("$defs") or {}).get(reference.removeprefix("#/$defs/")), root, depth + 1)
    if not found:
        for value in schema.get("enum") or ([schema["const"]] if "const" in schema else []):
            found.add("string" if isinstance(value, str) else "number" if isinstance(value, int | float) else "object")
    return found


def typed(text: str, types: frozenset[str] | None) -> Any:
    """The value that a text between tags means: text where the schema wants a string, else JSON or a constant of
    Python's. What is neither stays text, and the tool's own validation answers.

    >>> typed("7", frozenset({"string"})), typed("7", frozenset({"integer"})), typed("False", None), typed("a b", None)
    ('7', 7, False, 'a b')
    """
    if types is not None and types == {"string"}:
        return text
    value = _CONSTANTS.get(text.strip(), text)
    if value is text:
        try:
            value, end = json_at(text.strip(), 0)
        except ValueError:
            return _literal(text) if types and types <= {"array", "object", "null"} else text
        if end != len(text.strip()):
            return text
    if types and "string" in types and not any(_is(value, kind) for kind in types):
        return text
    return value


def _literal(text: str) -> Any:
    """A list or an object in Python's spelling, as templates write them with `string`; else the text."""
    if len(text) > _LONGEST_CODE:
        return text
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _KINDS.get(kind, ())) and not (isinstance(value, bool) and kind in ("integer", "number"))


def python_calls(code: str) -> list[tuple[str, dict[str, Any]]] | str:
    """The calls in a piece of Python code, a list of calls or calls one a line, or why they cannot be read. Nothing is
    run: arguments are literals, each with its name.

    >>> python_calls("[get_order(order_id=7, fast=true)]")
    [('get_order', {'order_id': 7, 'fast': True})]
    >>> python_calls("[get_order(7)]")
    'an argument without a name'
    """
    if len(code) > _LONGEST_CODE:
        return f"more than {_LONGEST_CODE} characters"
    try:
        body = ast.parse(code.strip()).body
        nodes: list[ast.expr] = []
        for statement in body:
            if not isinstance(statement, ast.Expr):
                return "expected calls alone"
            value = statement.value
            nodes += value.elts if isinstance(value, ast.List) else [value]
        calls = [_call(node) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"not a list of calls: {error}" if isinstance(error, SyntaxError) else str(error)
    return calls or "no call"


def literal(code: str) -> Any:
    """The value of a literal of Python, or of true, false and null. Raises ValueError.

    >>> literal("[1, True, null]")
    [1, True, None]
    """
    if len(code) > _LONGEST_CODE:
        raise ValueError(f"more than {_LONGEST_CODE} characters")
    try:
        return _value(ast.parse(code.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a literal: {code[:80]!r}") from error


def _call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call):
        raise ValueError("expected calls alone")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("an argument without a name")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if str(keyword.arg) in arguments:
            raise ValueError(f"the argument {keyword.arg} is given twice")
        arguments[str(keyword.arg)] = _value(keyword.value)
    return _name(node.func), arguments


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise ValueError("a call without a tool's name")


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | int | float)):
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise ValueError("a number that is too large")
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise ValueError("an object whose keys are not strings, each once")
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = _value(node.operand)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number
    raise ValueError("an argument that is no literal")
