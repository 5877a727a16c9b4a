"""Messages on spans, in the conventions' form (a role and parts) and in OpenAI's chat form (a role and content)."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cm2_agent.dialects.values import items, name_of, parsed, text
from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import (
    OPENAI_ROLES,
    Blob,
    Message,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolCallResponse,
    Uri,
    other_part,
    part_from_json,
)

_RECENT, _LONGEST = 4, 1 << 20
"""How many lists of messages are remembered, and how many characters long each may be."""
_NAMED = re.compile(r'\[\s*\{\s*"role"\s*:\s*"')
"""How a list begins whose first message says its role first."""
_ROLES: Mapping[str, Role] = {**OPENAI_ROLES, "human": "user", "ai": "assistant", "model": "assistant"}


def role_of(value: JSON, default: Role = "user") -> Role:
    """The role by any of its names. Raises TraceError for one that is unknown."""
    if value is None:
        return default
    role = _ROLES.get(value.lower()) if isinstance(value, str) else None
    if role is None:
        raise TraceError(f"a message on a span has role {str(value)[:40]!r}; expected one of {', '.join(_ROLES)}")
    return role


def read_messages(value: JSON, *, default: Role = "user") -> list[Message]:
    """The messages of a list, given as JSON or as its text, in either form; a tool's several answers in one message
    become one message each. Raises TraceError on what is no list of messages."""
    if isinstance(value, str) and value[:1] == "[":
        return list(_recent.read(value, default))
    return _messages(parsed(value), default)


def _messages(listed: JSON, default: Role) -> list[Message]:
    if isinstance(listed, Mapping):
        listed = listed.get("messages", [listed])
    if isinstance(listed, str):
        return [Message.of(default, listed)] if listed else []
    if listed is None:
        return []
    if not isinstance(listed, Sequence):
        raise TraceError(f"messages on a span are {type(listed).__name__}; expected a list")
    return [message for one in listed for message in read_message(one, default=default)]


class _Recent(threading.local):
    """The last lists of messages that a thread read, as text. The prompts of a dialogue begin with the ones before, in
    the same characters, and go on with the answer to them: what a longer one adds is all that is read of it, and the
    rest are the same objects."""

    def __init__(self) -> None:
        self._lists: deque[tuple[str, Role, list[Message]]] = deque(maxlen=_RECENT)

    def read(self, text: str, default: Role) -> list[Message]:
        found: list[Message] | None = None
        for known, role, messages in self._lists:
            if role == default and len(known) <= len(text) and text.startswith(known):
                rest = text[len(known) :].strip()
                if rest == "]":
                    return messages
                if rest[:1] == ",":  # what is known is a list without its end, so a member follows
                    added = self._added(rest[1:].lstrip(), default)
                    if added is not None:
                        found = [*messages, *added]
                        break
        if found is None:
            listed = parsed(text)
            found = _messages(listed, default)
            if not isinstance(listed, list):
                return found
        whole = text.rstrip()
        if found and len(whole) <= _LONGEST:
            self._lists.appendleft((whole[:-1].rstrip(), default, found))
        return found

    def _added(self, rest: str, default: Role) -> list[Message] | None:
        """The messages of a list without its beginning; None where it is none. They may begin with an answer that was
        read before: its role stands in its text, so that what either list takes for granted does not matter."""
        for known, _, messages in self._lists:
            if len(messages) == 1 and messages[0].role == "assistant" and _NAMED.match(known):
                one = known[1:].lstrip()
                if rest.startswith(one):
                    after = rest[len(one) :].lstrip()
                    if after == "]":
                        return messages
                    added = parsed(f"[{after[1:]}") if after[:1] == "," else None
                    if isinstance(added, list):
                        return [*messages, *_messages(added, default)]
        added = parsed(f"[{rest}")
        return _messages(added, default) if isinstance(added, list) else None


_recent = _Recent()


def read_message(value: JSON, *, default: Role = "user") -> list[Message]:
    """One message; several where it holds several answers of tools. Raises TraceError."""
    data = parsed(value)
    if isinstance(data, str):
        return [Message.of(default, data)]
    if type(data) is not dict and not isinstance(data, Mapping):
        raise TraceError(f"a message on a span is {type(data).__name__}; expected an object")
    role = role_of(data.get("role"), default)
    if "parts" in data:
        parts = [genai_part(part) for part in items(data["parts"])]
    else:
        parts = list(content_parts(data.get("content")))
        if role == "tool":
            parts = [_answer(data, parts)]
        if refusal := text(data.get("refusal")):
            parts.append(Text(content=refusal, extra={"refusal": True}))
        parts += [read_call(call) for call in items(data.get("tool_calls"))]
    message = Message(
        role=role, parts=tuple(parts), name=text(data.get("name")), finish_reason=text(data.get("finish_reason"))
    )
    return by_speaker(message)


def by_speaker(message: Message) -> list[Message]:
    """The message as a dialogue holds it: each answer of a tool is a message of its own, whatever role it stood
    under."""
    if not message.responses or (message.role == "tool" and len(message.parts) == 1):
        return [message]
    answers = [Message(role="tool", parts=(part,), name=message.name) for part in message.responses]
    rest = tuple(part for part in message.parts if not isinstance(part, ToolCallResponse))
    return (
        [*answers, replace(message, parts=rest, role="user" if message.role == "tool" else message.role)]
        if rest
        else answers
    )


def genai_part(value: JSON) -> Part:
    """A part as the conventions write it; the arguments of a call are parsed where they are JSON text. Raises
    TraceError."""
    if isinstance(value, str):
        return Text(content=value)
    if type(value) is not dict and not isinstance(value, Mapping):  # asking an abstract class costs more than the rest
        raise TraceError(f"a part of a message on a span is {type(value).__name__}; expected an object")
    kind = value.get("type")
    if kind in ("text", "reasoning", "thinking") and not isinstance(value.get("content"), str):
        said = text(value.get("text")) or text(value.get("thinking")) or ""
        return Text(content=said) if kind == "text" else Reasoning(content=said)
    if kind == "thinking":
        return Reasoning(content=value["content"])
    if kind == "tool_call_response" and len(value) == 3 and type(value.get("id")) is str and "response" in value:
        return ToolCallResponse(id=value["id"] or None, response=value["response"])  # as most of them are
    if kind == "tool_call":
        value = {**value, "id": name_of(value.get("id")), "arguments": parsed(value.get("arguments"))}
    elif kind == "tool_call_response":
        value = {**value, "id": name_of(value.get("id"))}
    try:
        return part_from_json(value)
    except TraceError:
        return other_part(value)


def content_parts(content: JSON) -> Iterable[Part]:
    """The parts of a chat message's content: text, or a list of blocks."""
    if content is None or content == "":
        return
    if isinstance(content, str):
        yield Text(content=content)
        return
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise TraceError(f"a message's content on a span is {type(content).__name__}; expected text or a list")
    for block in content:
        if isinstance(block, str):
            yield Text(content=block)
        elif isinstance(block, Mapping):
            yield _block(block)
        else:
            raise TraceError(f"a content block on a span is {type(block).__name__}; expected an object")


def read_call(value: JSON) -> ToolCall:
    """A tool call in OpenAI's form, the conventions', LangChain's or Vercel's. Raises TraceError."""
    data = parsed(value)
    inner = (data.get("function") or data.get("custom") or data) if isinstance(data, Mapping) else None
    if not isinstance(inner, Mapping):
        raise TraceError(f"a tool call on a span is {type(data).__name__}; expected an object")
    name = text(inner.get("name")) or text(inner.get("toolName"))
    if name is None:
        raise TraceError("a tool call on a span has no name")
    arguments = next((inner[key] for key in ("arguments", "args", "input") if key in inner), None)
    return ToolCall(id=name_of(data.get("id") or data.get("toolCallId")), name=name, arguments=parsed(arguments))


def _answer(data: Mapping[str, JSON], parts: Sequence[Part]) -> Part:
    found = next((part for part in parts if isinstance(part, ToolCallResponse)), None)
    if found is not None:
        return found
    content = data.get("content")
    if parts and all(isinstance(part, Text) for part in parts):
        content = "\n".join(part.content for part in parts if isinstance(part, Text))
    return ToolCallResponse(id=name_of(data.get("tool_call_id") or data.get("id")), response=content)


def _block(block: Mapping[str, JSON]) -> Part:
    kind = block.get("type")
    if kind in ("text", "input_text", "output_text") and isinstance(block.get("text"), str):
        return Text(content=block["text"])
    if kind in ("reasoning", "thinking"):
        said = (text(block.get(key)) for key in ("text", "thinking", "reasoning"))
        return Reasoning(content=next(filter(None, said), ""))
    if kind in ("tool_use", "tool-call"):
        return read_call(block)
    if kind in ("tool_result", "tool-result"):
        output = block.get("output", block.get("result", block.get("content")))
        if isinstance(output, Mapping) and "value" in output and "type" in output:  # {"type": "json", "value": …}
            failed = str(output["type"]).startswith("error")
            return ToolCallResponse(id=name_of(block.get("toolCallId")), response=output["value"], error=failed)
        if isinstance(output, list):
            texts = [one["text"] for one in output if isinstance(one, Mapping) and text(one.get("text"))]
            if texts and len(texts) == len(output):
                output = "\n".join(texts)
        identity = name_of(block.get("toolCallId") or block.get("tool_use_id"))
        return ToolCallResponse(id=identity, response=output, error=bool(block.get("is_error") or block.get("isError")))
    if kind == "image_url":
        image = block.get("image_url")
        address = image.get("url") if isinstance(image, Mapping) else image
        if isinstance(address, str):
            head, comma, body = address.partition(";base64,")
            if head.startswith("data:") and comma:
                return Blob(content=body, modality="image", mime_type=head.removeprefix("data:") or None)
            return Uri(uri=address, modality="image")
    if "content" in block:
        return genai_part(block)
    return other_part(block)


__all__ = ["by_speaker", "content_parts", "genai_part", "read_call", "read_message", "read_messages", "role_of"]
