"""LangChain's messages as ours, and ours as LangChain's.

What LangChain has no place for does not survive a trip through it: the order of text and tool calls within a message,
`extra` of messages, tool calls and reasoning, and a tool's answer that is neither text nor a list of content blocks (it
becomes its JSON text). What we have no place for does not survive the other way: LangChain's message ids, artifacts,
`additional_kwargs` other than `reasoning_content` and `refusal`, `response_metadata` other than the finish reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from cm2_agent.models.reasoning_text import split_reasoning
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.messages import (
    OPENAI_ROLES,
    Blob,
    Message,
    Other,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolCallResponse,
    Uri,
    other_part,
)

__all__ = ["from_langchain", "plain", "to_langchain"]

_ROLES: dict[str, Role] = {**OPENAI_ROLES, "human": "user", "ai": "assistant"}
_MEDIA = ("image", "audio", "video", "file")
# Blocks by which providers repeat, in an assistant's content, the calls that LangChain has in `tool_calls`.
_CALL_BLOCKS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "input_json_delta"}
)
_DEPTH = 100
_SIMPLE, _TEXT = frozenset({str, int, bool, type(None)}), frozenset({str})


def plain(value: Any, limit: int | None = None) -> JSON:
    """The value as JSON: mappings and sequences are walked; what JSON cannot hold (objects, bytes, NaN, cycles) is
    text. Never raises. With `limit`, what lies beyond about so many characters is cut, and the cut says how much.

    >>> plain({"order": 7, "ids": {2, 1}, "total": float("nan")})
    {'order': 7, 'ids': [1, 2], 'total': 'nan'}
    >>> plain({"page": "abcdefghij", "rows": [1, 2, 3]}, limit=12)
    {'page': 'abcd… (10 characters)', '…': '1 more keys'}
    """
    kind = type(value)
    if (kind is str and limit is None) or kind is int or kind is bool or value is None:
        return value
    if (
        kind is dict
        and limit is None
        and _SIMPLE.issuperset(map(type, value.values()))
        and set(map(type, value)) <= _TEXT
    ):
        return dict(value)
    return _plain(value, set(), None if limit is None else [limit])


def _plain(value: Any, above: set[int], left: list[int] | None = None) -> JSON:
    """`left` holds how many characters there is room for; without it there is room for all."""
    kind = type(value)
    if left is not None and kind is not str:
        left[0] -= 4 if issubclass(kind, Mapping | list | tuple) else 8
    if kind is str:
        return _fitting(value, left)
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):  # an enumeration's member, for one
        return _fitting(str.__str__(value), left)
    if isinstance(value, int | float):
        return plain(int(value) if isinstance(value, int) else float(value))
    if id(value) in above or len(above) > _DEPTH:
        return f"<{kind.__name__} within itself>" if id(value) in above else _fitting(_as_text(value), left)
    above.add(id(value))
    try:
        if isinstance(value, Mapping):
            if left is not None:
                return _plain_mapping(value, above, left)
            return {key if type(key) is str else _as_text(key): _plain(item, above) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(item, above) for item in value] if left is None else _plain_list(value, above, left)
        if isinstance(value, set | frozenset):
            return sorted((_plain(item, above, left) for item in value), key=str)
        if isinstance(value, BaseMessage):
            message = from_langchain(value).to_json()
            return message if left is None else _plain(message, above, left)
        if not isinstance(value, type) and callable(dump := getattr(value, "model_dump", None)):
            return _plain(dump(mode="python"), above, left)
        return _fitting(_as_text(value), left)
    except Exception:  # an object of the application's that cannot be looked at
        return _fitting(_as_text(value), left)
    finally:
        above.discard(id(value))


def _plain_mapping(value: Mapping[Any, Any], above: set[int], left: list[int]) -> JSON:
    out: dict[str, JSON] = {}
    for number, (key, item) in enumerate(value.items()):
        if left[0] <= 0:
            out["…"] = f"{len(value) - number} more keys"
            break
        name = key if type(key) is str else _as_text(key)
        left[0] -= len(name)
        out[name] = _plain(item, above, left)
    return out


def _plain_list(value: Sequence[Any], above: set[int], left: list[int]) -> JSON:
    out: list[JSON] = []
    for number, item in enumerate(value):
        if left[0] <= 0:
            out.append(f"… ({len(value) - number} more)")
            break
        out.append(_plain(item, above, left))
    return out


def _fitting(text: str, left: list[int] | None) -> str:
    if left is None:
        return text
    room, size = left[0], len(text) + 2
    left[0] -= size
    return text if size <= room else f"{text[: max(0, room)]}… ({len(text)} characters)"


def _as_text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def from_langchain(message: BaseMessage) -> Message:
    """Our form of one LangChain message. Never raises for what a provider put into its content: unknown blocks stay as
    they are. Raises TypeError for a RemoveMessage, which is an instruction and no message.

    >>> message = from_langchain(HumanMessage("Where is order 7?"))
    >>> message.role, message.text
    ('user', 'Where is order 7?')
    """
    if isinstance(message, AIMessage):
        return _assistant(message)
    if isinstance(message, ToolMessage):
        response = ToolCallResponse(
            id=message.tool_call_id or None, response=tool_answer(message.content), error=message.status == "error"
        )
        return Message(role="tool", parts=(response,), name=message.name)
    if isinstance(message, FunctionMessage):
        return Message(role="tool", parts=(ToolCallResponse(response=tool_answer(message.content)),), name=message.name)
    return Message(role=_role(message), parts=tuple(_parts(message.content)), name=message.name)


def to_langchain(messages: Iterable[Message]) -> list[BaseMessage]:
    """LangChain's form of a dialogue. A tool message with several responses becomes one ToolMessage each.

    >>> [message.type for message in to_langchain([Message.of("user", "Hi"), Message.of("assistant", "Hello")])]
    ['human', 'ai']
    """
    out: list[BaseMessage] = []
    for message in messages:
        if message.role == "tool":
            out.extend(_tool_messages(message))
        elif message.role == "assistant":
            out.append(_ai_message(message))
        elif message.role == "system":
            out.append(SystemMessage(content=_content(message.parts), name=message.name))
        else:
            out.append(HumanMessage(content=_content(message.parts), name=message.name))
    return out


def _role(message: BaseMessage) -> Role:
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, RemoveMessage):
        raise TypeError(
            "a RemoveMessage is an instruction to a graph's state and no message of a dialogue; leave it out"
        )
    if isinstance(message, ChatMessage):
        return _ROLES.get(message.role.lower(), "user")
    return _ROLES.get(message.type, "user")


def _assistant(message: AIMessage) -> Message:
    parts: list[Part] = []
    more, calls, broken = message.additional_kwargs, message.tool_calls, message.invalid_tool_calls
    reasoning = more.get("reasoning_content") if more else None
    if isinstance(reasoning, str) and reasoning:
        parts.append(Reasoning(content=reasoning))
    for part in _parts(message.content, calls=bool(calls or broken)):
        parts.extend(_without_thinking(part))
    refusal = more.get("refusal") if more else None
    if isinstance(refusal, str) and refusal and not any(_is_refusal(part) for part in parts):
        parts.append(_refusal(refusal))
    for call in calls:
        parts.append(ToolCall(id=call.get("id"), name=call["name"], arguments=plain(call["args"])))
    for bad in broken:
        extra = {"error": bad["error"]} if bad.get("error") else {}
        parts.append(
            ToolCall(id=bad.get("id"), name=bad.get("name") or "", arguments=bad.get("args") or "", extra=extra)
        )
    return Message(
        role="assistant", parts=tuple(parts), name=message.name, finish_reason=finish_reason(message.response_metadata)
    )


def _without_thinking(part: Part) -> Iterable[Part]:
    """A model's text, with the thinking that it wrote into it as a part of its own."""
    if not isinstance(part, Text):
        return (part,)
    thinking, said = split_reasoning(part.content)
    if not thinking:
        return (part,) if said == part.content else (Text(content=said, extra=part.extra),) if said else ()
    return (Reasoning(content=thinking), *((Text(content=said, extra=part.extra),) if said else ()))


def _refusal(text: str) -> Text:
    """OpenAI's refusal: what the model said to the user, marked."""
    return Text(content=text, extra={"refusal": True})


def _is_refusal(part: Part) -> bool:
    return isinstance(part, Text) and part.extra.get("refusal") is True


def finish_reason(metadata: Mapping[str, Any]) -> str | None:
    """Why the model stopped, under the keys that providers use."""
    if not metadata:
        return None
    for key in ("finish_reason", "stop_reason", "done_reason"):
        value = metadata.get(key)
        if isinstance(value, str):
            return value
    return None


def tool_answer(content: str | list[Any]) -> JSON:
    """The content of a tool's message as what the tool answered."""
    return content if isinstance(content, str) else plain(content)


def _parts(content: str | list[Any], calls: bool = False) -> Iterable[Part]:
    if isinstance(content, str):
        return (Text(content=content),) if content else ()
    return [
        part
        for block in content
        if not (calls and isinstance(block, Mapping) and block.get("type") in _CALL_BLOCKS)
        for part in (_part(block),)
    ]


def _part(block: Any) -> Part:
    if isinstance(block, str):
        return Text(content=block)
    data: dict[str, JSON] = plain(block) if isinstance(block, Mapping) else {"type": "unknown", "value": plain(block)}
    kind = data.get("type")
    if kind == "non_standard" and isinstance(data.get("value"), dict) and data["value"].get("type") == "refusal":
        data, kind = data["value"], "refusal"
    if kind == "refusal" and isinstance(data.get("refusal"), str):
        return _refusal(data["refusal"])
    if kind == "text" and isinstance(data.get("text"), str):
        return Text(content=data["text"], extra=_rest(data, "text"))
    if kind in ("reasoning", "thinking"):
        reasoning = _reasoning(data)
        if reasoning is not None:
            return Reasoning(content=reasoning, extra=_rest(data, "reasoning", "thinking"))
    if kind == "image_url":
        address = data.get("image_url")
        url = address.get("url") if isinstance(address, Mapping) else address
        if isinstance(url, str):
            return _media("image", url, None, {})
    if kind in _MEDIA:
        part = _media_block(str(kind), data)
        if part is not None:
            return part
    return other_part(data)


def _reasoning(data: Mapping[str, JSON]) -> str | None:
    for key in ("reasoning", "thinking"):
        if isinstance(data.get(key), str):
            return str(data[key])
    summary = data.get("summary")
    if isinstance(summary, list) and summary:
        return "\n".join(str(part.get("text", "")) for part in summary if isinstance(part, Mapping))
    return None


def _media_block(kind: str, data: Mapping[str, JSON]) -> Part | None:
    """LangChain's own blocks (both generations), and Anthropic's with a `source`."""
    source = data.get("source")
    inner: Mapping[str, JSON] = source if isinstance(source, Mapping) else data
    mime = inner.get("mime_type") or inner.get("media_type")
    mime = mime if isinstance(mime, str) else None
    extra = _rest(data, "url", "base64", "data", "mime_type", "media_type", "source", "source_type")
    if isinstance(inner.get("url"), str):
        return _media(kind, str(inner["url"]), mime, extra)
    for key in ("base64", "data"):
        if isinstance(inner.get(key), str):
            return Blob(content=str(inner[key]), modality=kind, mime_type=mime, extra=extra)
    return None


def _media(kind: str, url: str, mime: str | None, extra: Mapping[str, JSON]) -> Part:
    head, comma, body = url.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        return Blob(content=body, modality=kind, mime_type=head[5:-7] or mime, extra=extra)
    return Uri(uri=url, modality=kind, mime_type=mime, extra=extra)


def _rest(data: Mapping[str, JSON], *read: str) -> dict[str, JSON]:
    return {key: value for key, value in data.items() if key != "type" and key not in read}


def _block(part: Part) -> dict[str, JSON] | None:
    """The content block of a part; None for tool calls and responses, which LangChain has elsewhere."""
    if isinstance(part, Text) and _is_refusal(part):
        return {"type": "refusal", "refusal": part.content}
    if isinstance(part, Text):
        return {**part.extra, "type": "text", "text": part.content}
    if isinstance(part, Reasoning):
        return {**part.extra, "type": "reasoning", "reasoning": part.content}
    if isinstance(part, Uri | Blob):
        kind = part.modality if part.modality in _MEDIA else "file"
        mime = {"mime_type": part.mime_type} if part.mime_type is not None else {}
        value = {"url": part.uri} if isinstance(part, Uri) else {"base64": part.content}
        return {**part.extra, "type": kind, **value, **mime}
    if isinstance(part, Other):
        return dict(part.data)
    return None


def _content(parts: Iterable[Part]) -> Any:
    """Text where the content is one plain text, as most models want it; else a list of blocks."""
    contents = [part for part in parts if not isinstance(part, ToolCall | ToolCallResponse)]
    if not contents:
        return ""
    only = contents[0]
    if len(contents) == 1 and isinstance(only, Text) and not only.extra and only.content:
        return only.content
    return [block for part in contents for block in (_block(part),) if block is not None]


def _ai_message(message: Message) -> AIMessage:
    calls: list[Any] = []
    invalid: list[Any] = []
    for call in message.tool_calls:
        if isinstance(call.arguments, Mapping) or call.arguments is None:
            calls.append({"name": call.name, "args": dict(call.arguments or {}), "id": call.id, "type": "tool_call"})
        else:
            args = call.arguments if isinstance(call.arguments, str) else canonical_json(call.arguments)
            invalid.append(
                {
                    "name": call.name,
                    "args": args,
                    "id": call.id,
                    "error": call.extra.get("error"),
                    "type": "invalid_tool_call",
                }
            )
    metadata = {} if message.finish_reason is None else {"finish_reason": message.finish_reason}
    return AIMessage(
        content=_content(message.parts),
        tool_calls=calls,
        invalid_tool_calls=invalid,
        name=message.name,
        response_metadata=metadata,
    )


def _tool_messages(message: Message) -> Iterable[ToolMessage]:
    for part in message.responses:
        answer = part.response
        blocks = (
            isinstance(answer, list) and answer and all(isinstance(block, dict) and "type" in block for block in answer)
        )
        content: Any = answer if isinstance(answer, str) or blocks else "" if answer is None else canonical_json(answer)
        yield ToolMessage(
            content=content, tool_call_id=part.id or "", name=message.name, status="error" if part.error else "success"
        )
