"""Messages as LangChain writes them, `dumpd`, `messages_to_dict` and `model_dump`, as chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON

_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "chat": "user",
}
_REMOVE: Final = "remove"
"""The kind of a message that takes another out of the history (RemoveMessage), and has no role."""
_REMOVE_ALL: Final = "__remove_all__"
_ITS_OWN: Final = frozenset({"tool_use", "tool_call", "function_call", "invalid_tool_call", "input_json_delta"})
"""Blocks of the content that stand in `tool_calls` too."""


def is_langchain(message: Mapping[str, JSON]) -> bool:
    """Whether it is a message of LangChain: a constructor of one, or an object whose `type` is a kind of message."""
    return _fields(message) is not None


def kind_of(name: JSON) -> str | None:
    """`human`, `ai`, `remove`, … of a message's type or class name (`HumanMessage`, `AIMessageChunk`)."""
    if not isinstance(name, str):
        return None
    short = name.removesuffix("Chunk").removesuffix("Message").casefold()
    known = short in _ROLES or short == _REMOVE
    return short if known and (short == name or name.endswith(("Message", "MessageChunk"))) else None


def _fields(message: Mapping[str, JSON]) -> tuple[str, Mapping[str, JSON]] | None:
    """The kind of a message and its fields, None for what is none."""
    if message.get("lc") == 1 and isinstance(message.get("id"), list) and message["id"]:
        kind, fields = kind_of(message["id"][-1]), message.get("kwargs")
        return (kind, fields) if kind is not None and isinstance(fields, Mapping) else None
    kind = kind_of(message.get("type"))
    if kind is None or "role" in message:
        return None
    data = message.get("data")
    if isinstance(data, Mapping) and "content" in data:
        return kind, data
    return (kind, message) if "content" in message or (kind == _REMOVE and "id" in message) else None


def langchain_to_chat(messages: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    """The messages as chat messages; others among them stay as they are. A tool's message says by its `status` whether
    the call failed; dumps of versions without one do not say it. Messages that remove others are applied, as LangGraph
    does it. Raises TraceError where one names no message before it."""
    return [_chat(message) for message in _left(messages)]


def _left(messages: Sequence[Mapping[str, JSON]]) -> list[Mapping[str, JSON]]:
    """The messages that no later one removes."""
    left: list[Mapping[str, JSON]] = []
    for number, message in enumerate(messages):
        found = _fields(message)
        if found is None or found[0] != _REMOVE:
            left.append(message)
            continue
        removed = found[1].get("id")
        before = [] if removed == _REMOVE_ALL else [one for one in left if removed is None or _id(one) != removed]
        if removed != _REMOVE_ALL and len(before) == len(left):
            raise TraceError(
                f"message {number}: removes the message of id {removed!r}, and none before it has that id; expected the"
                " id of an earlier message. Write the history as the graph's state holds it"
            )
        left = before
    return left


def _id(message: Mapping[str, JSON]) -> JSON:
    found = _fields(message)
    return message.get("id") if found is None else found[1].get("id")


def _chat(message: Mapping[str, JSON]) -> JSON:
    found = _fields(message)
    if found is None:
        return dict(message)
    kind, fields = found
    more = fields.get("additional_kwargs")
    more = more if isinstance(more, Mapping) else {}
    role = _ROLES[kind]
    if kind == "chat":
        role = str(fields.get("role") or "user")
    chat: dict[str, JSON] = {"role": role, "content": fields.get("content")}
    if isinstance(fields.get("name"), str):
        chat["name"] = fields["name"]
    if role == "tool":
        chat["tool_call_id"] = fields.get("tool_call_id")
        if "status" in fields:
            chat["status"] = fields["status"]
        return chat
    if role != "assistant":
        return chat
    if isinstance(more.get("reasoning_content"), str):
        chat["reasoning_content"] = more["reasoning_content"]
    calls = [*_list(fields.get("tool_calls")), *_list(fields.get("invalid_tool_calls"))]
    if calls:
        chat["tool_calls"] = calls
        content = fields.get("content")
        if isinstance(content, list):
            chat["content"] = [
                one for one in content if not (isinstance(one, Mapping) and str(one.get("type")) in _ITS_OWN)
            ]
    elif more.get("tool_calls"):
        chat["tool_calls"] = more["tool_calls"]
    elif more.get("function_call"):
        chat["function_call"] = more["function_call"]
    if isinstance(more.get("refusal"), str):
        chat["refusal"] = more["refusal"]
    return chat


def _list(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []


__all__ = ["is_langchain", "kind_of", "langchain_to_chat"]
