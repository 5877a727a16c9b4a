"""LangChain's messages as they stand in JSON: what `dumpd`, `messages_to_dict` and `model_dump` write, and the pairs of
role and text that a graph may be given. Read by their shape, without LangChain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cm2_agent.dialects.part_messages import by_speaker, content_parts, read_call, role_of
from cm2_agent.dialects.values import items, name_of, parsed, text
from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCallResponse

_TYPES: Final = {
    "human": "user",
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "HumanMessageChunk": "user",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}
_MACHINERY = ("langgraph_", "ls_", "lc_", "checkpoint", "__pregel", "__")
_CALLS = frozenset({"tool_use", "tool_call", "tool_call_chunk", "function_call", "input_json_delta"})


def is_framework_key(name: str) -> bool:
    """Whether a key of LangChain's metadata is a fact about the machinery rather than the run."""
    return name == "thread_id" or name.startswith(_MACHINERY)


def langchain_messages(value: JSON) -> list[Message]:
    """The messages that a value passed around holds: a list of them, one, or an object with them under `messages`.
    Empty for anything else, and where one of them cannot be read."""
    found = parsed(value)
    if isinstance(found, Mapping) and "messages" in found:
        found = found["messages"]
    listed = [found] if isinstance(found, Mapping) else items(found)
    if len(listed) == 1 and isinstance(listed[0], list) and listed[0] and isinstance(listed[0][0], dict | list):
        listed = listed[0]  # a batch of one
    messages: list[Message] = []
    try:
        for one in listed:
            read = _read(one)
            if read is None:
                return []
            messages += read
    except TraceError:
        return []
    return messages


def _read(value: JSON) -> list[Message] | None:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value):
        return [Message.of(role_of(value[0]), value[1])]
    if not isinstance(value, Mapping):
        return None
    if value.get("lc") == 1 and isinstance(value.get("kwargs"), Mapping):
        kind = value["kwargs"].get("type")
        if kind is None:
            name = str((value.get("id") or [""])[-1])
            kind = name.removesuffix("Chunk").removesuffix("Message").lower()
        return _of(str(kind), value["kwargs"])
    if isinstance(value.get("data"), Mapping) and value.get("type") in _TYPES:
        return _of(value["type"], value["data"])
    if value.get("type") in _TYPES and "content" in value:
        return _of(value["type"], value)
    if isinstance(value.get("role"), str) and "content" in value:
        return _of(value["role"], value)
    return None


def _of(kind: str, data: Mapping[str, JSON]) -> list[Message]:
    role = role_of(_TYPES.get(kind, kind))
    name = text(data.get("name"))
    if role == "tool":
        parts = list(content_parts(data.get("content")))
        answer: JSON = data.get("content")
        if parts and all(isinstance(part, Text) for part in parts):
            answer = "\n".join(part.content for part in parts if isinstance(part, Text))
        failed = data.get("status") == "error"
        response = ToolCallResponse(id=name_of(data.get("tool_call_id")), response=answer, error=failed)
        return [Message(role="tool", parts=(response,), name=name)]
    content = data.get("content")
    if isinstance(content, list):  # calls are repeated there by some providers
        content = [block for block in content if not (isinstance(block, Mapping) and block.get("type") in _CALLS)]
    spoken = list(content_parts(content))
    extra = data.get("additional_kwargs")
    thinking = text(extra.get("reasoning_content")) if isinstance(extra, Mapping) else None
    before = [Reasoning(content=thinking)] if thinking else []
    calls = [read_call(call) for call in items(data.get("tool_calls"))]
    return by_speaker(Message(role=role, parts=(*before, *spoken, *calls), name=name))


__all__ = ["is_framework_key", "langchain_messages"]
