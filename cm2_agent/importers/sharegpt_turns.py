"""Turns of ShareGPT's kind (`{"from": "human", "value": …}`), with and without tools, as chat messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from cm2_agent.importers.json_records import parse_json
from cm2_agent.types.json_values import JSON

_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function": "tool",
}
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_WHOLE_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*(?:</tool_response>|\Z)", re.DOTALL)


def is_sharegpt(turn: Mapping[str, JSON]) -> bool:
    """Whether it is a turn: who it is from, and what was said."""
    return isinstance(turn.get("from"), str) and "value" in turn


def sharegpt_to_chat(turns: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    """The turns as chat messages. Calls stand in a turn of their own, as JSON, or in Hermes' tags within the
    assistant's; what they were answered bears no ids: it is paired by its order."""
    with_tools = any(
        _ROLES.get(str(turn.get("from")).casefold()) in ("tool", "call") or _holds_a_call(turn.get("value"))
        for turn in turns
    )
    found: list[JSON] = []
    for turn in turns:
        name, value = str(turn.get("from")), turn.get("value")
        role = _ROLES.get(name.casefold(), name)
        extra = {"weight": 0} if turn.get("weight") == 0 or turn.get("loss") is False else {}
        if role == "call":
            _add_calls(found, [*_calls_of(value)], extra)
        elif role == "tool":
            found += [{"role": "tool", "content": one} for one in _in_order(_answers(value), _asked(found))]
        elif role == "assistant" and with_tools and isinstance(value, str) and "<tool_call>" in value:
            texts = _CALL.sub("", value).strip()
            calls = [call for one in _CALL.findall(value) for call in _calls_of(one)]
            found.append({"role": "assistant", "content": texts, "tool_calls": calls, **extra})
        else:
            found.append({"role": role, "content": value, **extra})
    return found


def _holds_a_call(value: JSON) -> bool:
    """Whether a text holds a whole call in its tags, whatever became of it."""
    for one in _WHOLE_CALL.findall(value) if isinstance(value, str) and "<tool_call>" in value else ():
        try:
            read = parse_json(one, strict=False)
        except ValueError:
            continue
        if isinstance(read, Mapping) and {"name", "arguments"} <= read.keys():
            return True
    return False


def _add_calls(found: list[JSON], calls: list[JSON], extra: Mapping[str, JSON]) -> None:
    """Calls one after the other, before any answer, are one message's."""
    last = found[-1] if found else None
    if isinstance(last, dict) and last["role"] == "assistant" and last.get("tool_calls"):
        last["tool_calls"] += calls
    else:
        found.append({"role": "assistant", "content": None, "tool_calls": calls, **extra})


def _calls_of(value: JSON) -> list[JSON]:
    """The calls that a text holds: an object, or a list of them. What is no JSON is a call that cannot be read."""
    read = value
    if isinstance(value, str):
        try:
            read = parse_json(value, strict=False)
        except ValueError:
            name = re.search(r"""['"]name['"]\s*:\s*['"]([^'"]+)['"]""", value)
            return [{"name": name.group(1) if name else "unknown", "arguments": value, "error": "not JSON"}]
    calls = read if isinstance(read, list) else [read]
    return [
        one
        if isinstance(one, Mapping) and ("name" in one or "function" in one)
        else {"name": "unknown", "arguments": str(value), "error": "names no tool"}
        for one in calls
    ]


def _answers(value: JSON) -> list[JSON]:
    tagged = _RESPONSE.findall(value) if isinstance(value, str) and "<tool_response>" in value else []
    return [*tagged] if tagged else [value]


def _asked(found: Sequence[JSON]) -> list[str]:
    """The names of the calls that the last message made, none where it is no message of calls."""
    last = found[-1] if found else None
    calls = last.get("tool_calls") if isinstance(last, Mapping) else None
    inner = [one.get("function", one) for one in calls or () if isinstance(one, Mapping)]
    return [str(one.get("name") if isinstance(one, Mapping) else one) for one in inner]


def _in_order(answers: list[JSON], asked: Sequence[str]) -> list[JSON]:
    """The answers in the order of the calls, where each says which tool gave it, as Hermes does
    (`{"name": …, "content": …}`); else as they are."""
    named: list[tuple[str, JSON]] = []
    for one in answers:
        try:
            read = parse_json(one, strict=False) if isinstance(one, str) else one
        except ValueError:
            return answers
        if not isinstance(read, Mapping) or set(read) != {"name", "content"} or not isinstance(read["name"], str):
            return answers
        named.append((read["name"], read["content"]))
    if sorted(name for name, _ in named) != sorted(asked):
        return answers
    found: list[JSON] = []
    for name in asked:
        place = next(at for at, (own, _) in enumerate(named) if own == name)
        found.append(named.pop(place)[1])
    return found


__all__ = ["is_sharegpt", "sharegpt_to_chat"]
