"""Calls in the form of Python whose strings stand between single quotes as they are, as LFM2.5's template writes
them: a quote, a backslash or a line break in a string is not escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cm2_agent.models.call_values import json_at, literal, python_calls
from cm2_agent.models.tool_call_text import CallText

__all__ = ["block_calls", "quoted_calls"]

_OPEN, _CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_NAME = re.compile(r"\s*(?P<name>[A-Za-z_][\w.]*)\(\s*")
_KEY = re.compile(r"\s*(?P<key>\w+)\s*=\s*")
# The quote that ends a string is the first that the next argument, the next call or the end of all follows.
_QUOTE = re.compile(r"'(?=\s*(?:,\s*\w+\s*=|\)\s*(?:\Z|,\s*[A-Za-z_][\w.]*\()))")
_BARE = re.compile(r"[^,)]*")
_MOST_ENDS = 16
"""Places at which a block or a list may end, where its closing mark stands in a string too."""


def quoted_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[CallText]]:
    """The text outside the calls, and the calls in order. Nothing is raised, whatever the text.

    >>> quoted_calls("<|tool_call_start|>[say(words='it's 7)')]<|tool_call_end|>", ())[1][0].arguments
    {'words': "it's 7)"}
    """
    del tools  # literals have types of their own
    said: list[str] = []
    calls: list[CallText] = []
    position = 0
    while (start := text.find(_OPEN, position)) >= 0:
        said.append(text[position:start])
        found, position = block_calls(text, start, start + len(_OPEN), _CLOSE, lambda code: _calls(code.strip()))
        calls += found
    return "".join([*said, text[position:]]).strip(), calls


def block_calls(
    text: str,
    start: int,
    body: int,
    closing: str,
    read: Callable[[str], list[tuple[str, dict[str, Any]]] | str],
) -> tuple[list[CallText], int]:
    """The calls between a mark, at `text[start:body]`, and its closing one, and the place after it.

    `read` gives the calls of what stands between, or why they cannot be read. The closing mark may stand in a string of
    an argument: the first one before which all can be read ends the block.
    """
    error, position = "the tool call is not closed", body
    for _ in range(_MOST_ENDS):
        end = text.find(closing, position)
        if end < 0:
            break
        position = end + len(closing)
        found = read(text[body:end])
        if not isinstance(found, str):
            whole = text[start:position]
            return [CallText(text=whole, name=name, arguments=values) for name, values in found], position
        error = found
    first = text.find(closing, body)
    stop = len(text) if first < 0 else first + len(closing)
    name = re.search(r"([A-Za-z_][\w.]*)\(", text[body:stop])
    return [CallText(text=text[start:stop].strip(), name=name and name[1], error=error)], stop


def _calls(code: str) -> list[tuple[str, dict[str, Any]]] | str:
    """The calls in a list of them, or why they cannot be read."""
    if not (code.startswith("[") and code.endswith("]")):
        return "not a list of calls"
    body = code[1:-1].strip()
    calls: list[tuple[str, dict[str, Any]]] = []
    position = 0
    try:
        while True:
            opened = _NAME.match(body, position)
            if opened is None:
                return "a call without a tool's name"
            arguments, position = _arguments(body, opened.end())
            calls.append((opened["name"], arguments))
            rest = body[position:].lstrip()
            if not rest:
                return calls
            if not rest.startswith(","):
                return "more follows the call"
            position = len(body) - len(rest) + 1
    except ValueError as error:
        read = python_calls(code)  # a model may write Python's own quotes
        return str(error) if isinstance(read, str) else read


def _arguments(body: str, position: int) -> tuple[dict[str, Any], int]:
    """The arguments of a call, and where what follows it begins. Raises ValueError."""
    arguments: dict[str, Any] = {}
    while not body.startswith(")", position):
        named = _KEY.match(body, position)
        if named is None:
            raise ValueError("an argument without a name")
        if named["key"] in arguments:
            raise ValueError(f"the argument {named['key'][:80]!r} is given twice")
        arguments[named["key"]], position = _value(body, named.end())
        rest = body[position:].lstrip()
        position = len(body) - len(rest)
        if rest.startswith(","):
            position += 1
        elif not rest.startswith(")"):
            raise ValueError("an argument or the call is not closed")
    return arguments, position + 1


def _value(body: str, position: int) -> tuple[Any, int]:
    if body.startswith("'", position):
        closed = _QUOTE.search(body, position + 1)
        if closed is None:
            raise ValueError("a string is not closed")
        return body[position + 1 : closed.start()], closed.end()
    if body[position : position + 1] in ("[", "{"):
        return _list(body, position)
    bare = _BARE.match(body, position)
    assert bare is not None
    return literal(bare[0].strip()), bare.end()


def _list(body: str, position: int) -> tuple[Any, int]:
    """A list or an object, in JSON or in Python's spelling."""
    with suppress(ValueError):
        return json_at(body, position)
    end = position
    for _ in range(_MOST_ENDS):
        end = body.find("]" if body[position] == "[" else "}", end) + 1
        if not end:
            break
        with suppress(ValueError):
            return literal(body[position:end]), end
    raise ValueError("a list or an object is not closed")
