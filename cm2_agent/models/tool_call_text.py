"""Tool calls in a completion's text: those that can be read, and what looks like one and is none."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from cm2_agent.models.strict_json import strict_decoder

__all__ = ["FORMAT", "CallText", "call_in", "find_calls"]

FORMAT = '<tool_call>{"name": "TOOL", "arguments": {…}}</tool_call>'
"""How a call is written."""

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_NAME = re.compile(r'"name"\s*:\s*"([^"]*)"')
_CALL_END = re.compile(r"\s*</tool_call>")
_KEYS = {"name", "arguments", "parameters", "id", "type"}
_DECODER = strict_decoder()
_LONGEST_CODE = 10_000
"""Characters of a text that is tried as Python."""
# How other families of models write a call, as it stands in the text: a name for the error, and the pattern.
_FOREIGN: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (family, re.compile(pattern, re.DOTALL))
    for family, pattern in (
        ("Mistral", r"\[TOOL_CALLS\].*"),
        ("Granite and Phi", r"<\|tool_call\|>.*"),
        ("Llama", r"<\|python_tag\|>.*"),
        ("DeepSeek", r"<｜tool▁calls?▁begin｜>.*"),
        ("Kimi", r"<\|tool_calls?(?:_section)?_begin\|>.*"),
        ("gpt-oss", r"(?:<\|start\|>assistant)?(?:<\|channel\|>\w+ to=|\s*to=functions\.\S+<\|channel\|>).*"),
        ("Qwen3-Coder", r"<function=[^>\n]+>.*"),
        ("Llama 4 and LFM2", r"<\|(?:tool_call|python)_start\|>.*"),
        ("Gemma 4", r"<\|tool_call>.*"),
        ("MiniMax", r"(?:<\w+:(?:tool_call|function_calls)>\s*)?<(?:\w+:)?invoke name=.*"),
        ("Functionary", r"<function_calls?>.*"),
        ("Gemma", r"```tool_code\n.*?(?:```|\Z)"),
    )
)


@dataclass(frozen=True, kw_only=True)
class CallText:
    """One call as it was written: `arguments` are an object, or None where `error` says why it cannot be run."""

    text: str
    name: str | None
    arguments: dict[str, Any] | None = None
    error: str | None = None


def find_calls(text: str) -> tuple[str, list[CallText]]:
    """The text outside the calls, and the calls in order. Nothing is raised, whatever the text.

    >>> find_calls('One moment.<tool_call>{"name": "get_order", "arguments": {"id": 7}}</tool_call>')[0]
    'One moment.'
    >>> find_calls('{"name": "get_order", "parameters": {"id": 7}}')[1][0].error[:37]
    'the call is not marked as a tool call'
    """
    said: list[str] = []
    calls: list[CallText] = []
    position = 0
    while (start := text.find(_OPEN, position)) >= 0:
        said.append(text[position:start])
        body, position, closed = _body(text, start + len(_OPEN))
        calls.append(_read(body) if closed else _broken(body, "the tool call is not closed"))
    rest = "".join([*said, text[position:]]).strip()
    return (rest, calls) if calls else _foreign(rest)


def _body(text: str, start: int) -> tuple[str, int, bool]:
    """A call's text, where what follows begins, and whether it was closed. The closing tag may stand in an argument."""
    end = text.find(_CLOSE, start)
    if end < 0:
        return text[start:].strip(), len(text), False
    if text.find(_CLOSE, end + 1, end + 4096) >= 0:
        lead = len(text[start:end]) - len(text[start:end].lstrip())
        try:
            _, stop = json.JSONDecoder().raw_decode(text, start + lead)
        except (ValueError, RecursionError):
            stop = 0
        if stop > end and (closing := _CALL_END.match(text, stop)):
            return text[start:stop].strip(), closing.end(), True
    return text[start:end].strip(), end + len(_CLOSE), True


def _read(body: str) -> CallText:
    parsed = _call(body)
    if isinstance(parsed, str):
        return _broken(body, parsed)
    return CallText(text=body, name=parsed[0], arguments=parsed[1])


def _broken(body: str, error: str) -> CallText:
    name = _NAME.search(body)
    return CallText(text=body, name=name and name[1], error=error)


def _call(body: str) -> tuple[str, dict[str, Any]] | str:
    """Name and arguments, or what is wrong with the text."""
    try:
        value = _DECODER.decode(body)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return _call_of(value)


def call_in(value: Any, text: str) -> CallText:
    """The call that a value of JSON means, an object with "name" and "arguments" or "parameters"; `text` is how it was
    written."""
    parsed = _call_of(value)
    if isinstance(parsed, str):
        return _broken(text, parsed)
    return CallText(text=text, name=parsed[0], arguments=parsed[1])


def _call_of(value: Any) -> tuple[str, dict[str, Any]] | str:
    if isinstance(value, list):
        return "a list of calls; expected one object in each <tool_call>"
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return 'expected an object with "name" and "arguments"'
    unknown = sorted(set(map(str, value)) - _KEYS)
    if unknown:  # the arguments may be there, and the call must not run without them
        return f'unknown keys {", ".join(unknown)[:80]}; expected "name" and "arguments" alone'
    if "arguments" in value and "parameters" in value:
        return 'both "arguments" and "parameters"; expected "arguments" alone'
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the arguments as a string of JSON
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError) as error:
            return f"the arguments are not JSON: {error}"
    return (value["name"], arguments) if isinstance(arguments, dict) else "the arguments are not an object"


def _foreign(text: str) -> tuple[str, list[CallText]]:
    """A call in a form that was not read: it never ran, and must not pass for a reply."""
    for family, pattern in _FOREIGN:
        if found := pattern.search(text):
            error = f"the call is written as {family} models write it; expected {FORMAT}"
            said = (text[: found.start()] + text[found.end() :]).strip()
            return said, [_broken(found[0], error)]
    bare = text.removesuffix(_CLOSE).strip()
    unmarked = f"the call is not marked as a tool call; expected {FORMAT}"
    if _is_bare_call(bare):
        return "", [_broken(text, unmarked)]
    if (name := _python_call(bare)) is not None:
        return "", [CallText(text=text, name=name, error=unmarked)]
    return text, []


def _is_bare_call(text: str) -> bool:
    """Whether the whole text is the JSON of one call, or of a list of calls."""
    if text[:1] not in ("{", "["):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(
        isinstance(call, dict)
        and isinstance(call.get("name"), str)
        and any(isinstance(call.get(key), dict) for key in ("arguments", "parameters"))
        for call in listed
    )


def _python_call(text: str) -> str | None:
    """The name of the first call where the whole text is a Python list of calls, as Llama 4 and xLAM write them."""
    if not (text.startswith("[") and text.endswith(")]")) or len(text) > _LONGEST_CODE:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.List):
        return None
    names = [
        call.func.id
        for call in tree.elts
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
    ]
    return names[0] if names and len(names) == len(tree.elts) else None
