"""LangChain's messages as a chat template wants them, and the message that a model's text means."""

from __future__ import annotations

import hashlib
import json
import string
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)

from cm2_agent.models.call_formats import HERMES, CallFormat
from cm2_agent.models.reasoning_text import opening_tag, split_reasoning
from cm2_agent.models.response_template import TemplateFormat

if TYPE_CHECKING:
    from cm2_agent.models.template_probe import TemplateProfile

# Ids of tool calls are derived, not drawn, so that the same run gives the same bytes.
_NAMESPACE = uuid.UUID("6f0d2f4c-5a8e-4b8e-9d0c-3f8f4c1f2a11")
REASONING = "reasoning_content"
"""Where LangChain's messages have a model's thinking, in `additional_kwargs`."""
_LETTERS, _SHORT = string.digits + string.ascii_letters, 9


def parse_completion(
    text: str,
    salt: str = "",
    prompt: str = "",
    form: CallFormat | TemplateFormat = HERMES,
    tools: Sequence[Mapping[str, Any]] = (),
) -> AIMessage:
    """The message that a completion means; by default `<tool_call>{"name": …, "arguments": {…}}</tool_call>` blocks are
    its tool calls.

    Thinking is split off first and stands in `additional_kwargs["reasoning_content"]`: a call drafted there is none.
    What stands outside the calls is the content. What looks like a call and cannot be read becomes an invalid tool
    call with the reason; nothing is raised, whatever the text.

    Args:
        text: the completion, without the stop token.
        salt: the ids of the calls are a function of it and the text: give each call of a dialogue its own, since a
            model may write the same text twice.
        prompt: the end of the prompt, which may have begun the model's thinking.
        form: how the model writes calls, as the probe of its chat template found.
        tools: the tools that were offered, as OpenAI lists them; their schemas give types where a format has none.

    >>> message = parse_completion('One moment.<tool_call>{"name": "get_order", "arguments": {"id": 7}}</tool_call>')
    >>> message.content, message.tool_calls[0]["name"], message.tool_calls[0]["args"]
    ('One moment.', 'get_order', {'id': 7})
    """
    if isinstance(form, TemplateFormat):
        reasoning, content, found = form.read_whole(text, prompt, tools)
    else:
        reasoning, said = split_reasoning(text, opening_tag(prompt))
        content, found = form.read(said, tools)
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for number, call in enumerate(found):
        call_id = call_id_of(f"{salt}:{number}:{text}")
        if call.arguments is None:
            invalid.append(
                InvalidToolCall(name=call.name, args=call.text, id=call_id, error=call.error, type="invalid_tool_call")
            )
        else:
            calls.append(ToolCall(name=call.name or "", args=call.arguments, id=call_id, type="tool_call"))
    return AIMessage(
        content=content,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs={REASONING: reasoning} if reasoning else {},
    )


def call_id_of(text: str) -> str:
    """The id of a tool call, as a function of the text."""
    return f"call_{uuid.uuid5(_NAMESPACE, text.encode('utf-8', 'replace').decode()).hex[:16]}"


def reasoning_of(message: AIMessage) -> str:
    """The thinking of a message: as `parse_completion` gives it, or in blocks of its content."""
    written = message.additional_kwargs.get(REASONING)
    if isinstance(written, str) and written:
        return written
    if isinstance(message.content, str):
        return ""
    blocks = [block for block in message.content if isinstance(block, dict) and block.get("type") == "reasoning"]
    return "\n".join(block["reasoning"] for block in blocks if isinstance(block.get("reasoning"), str))


def content_of(message: AIMessage) -> tuple[Any, ...]:
    """What a message says, however it was made."""
    calls = [(call["name"], call["args"]) for call in message.tool_calls]
    return message.content, reasoning_of(message), calls, len(message.invalid_tool_calls)


def template_messages(messages: Sequence[BaseMessage], profile: TemplateProfile | None = None) -> list[dict[str, Any]]:
    """LangChain messages as chat templates want them; arguments stay objects, invalid calls stand as the text they
    were. With a template's profile: with the ids of calls, and all in the form that this template takes."""
    listed = [_template_message(message, profile) for message in messages]
    if profile is None:
        return listed
    for entry, message in zip(listed, messages, strict=True):
        if isinstance(message, AIMessage):
            _fit(entry, message, profile)
        elif isinstance(message, ToolMessage) and profile.short_ids:
            entry["tool_call_id"] = short_id(message.tool_call_id)
    return listed


def _fit(entry: dict[str, Any], message: AIMessage, profile: TemplateProfile) -> None:
    for written, call in zip(entry.get("tool_calls", ()), message.tool_calls, strict=True):
        call_id = call.get("id") or call_id_of(json.dumps([call["name"], call["args"]], default=str))
        written["id"] = short_id(call_id) if profile.short_ids else call_id
        if profile.arguments_as_text:
            written["function"]["arguments"] = json.dumps(call["args"], ensure_ascii=False)
    if profile.reasoning_key not in (None, REASONING) and REASONING in entry:
        entry[str(profile.reasoning_key)] = entry.pop(REASONING)


def short_id(call_id: str) -> str:
    """Nine letters and digits for a call's id, as Mistral's templates want them; the same for the same id.

    >>> short_id("a1B2c3D4e"), len(short_id("call_0123456789abcdef"))
    ('a1B2c3D4e', 9)
    """
    if len(call_id) == len(short := "".join(c for c in call_id if c in _LETTERS)) == _SHORT:
        return short
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    digits = []
    for _ in range(_SHORT):
        number, place = divmod(number, len(_LETTERS))
        digits.append(_LETTERS[place])
    return "".join(digits)


def _text(message: BaseMessage) -> str:
    """What the message says; a refusal in the form of OpenAI is said too."""
    blocks = message.content if isinstance(message.content, list) else ()
    refusals = [block["refusal"] for block in blocks if isinstance(block, dict) and block.get("type") == "refusal"]
    return "".join([str(message.text), *map(str, refusals)])


def _template_message(message: BaseMessage, profile: TemplateProfile | None) -> dict[str, Any]:
    text = _text(message)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": text}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": text}
    if isinstance(message, ToolMessage):
        entry = {"role": "tool", "content": text, "tool_call_id": message.tool_call_id}
        return entry | ({"name": message.name} if message.name else {})
    if isinstance(message, AIMessage):
        opening, closing = ("<tool_call>", "</tool_call>") if profile is None or profile.calls is HERMES else ("", "")
        text += "".join(f"{opening}{call['args'] or ''}{closing}" for call in message.invalid_tool_calls)
        calls = [
            {"type": "function", "function": {"name": c["name"], "arguments": c["args"]}} for c in message.tool_calls
        ]
        reasoning = reasoning_of(message)
        return (
            {"role": "assistant", "content": text}
            | ({REASONING: reasoning} if reasoning else {})
            | ({"tool_calls": calls} if calls else {})
        )
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": text}
    raise TypeError(
        f"cannot give a {type(message).__name__} to a chat template; expected system, human, AI, tool or chat messages"
    )


def history_hash(messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]] | None) -> str:
    """16 hexadecimal digits that change when anything that the template sees does."""
    seen = json.dumps([template_messages(messages), list(tools or ())], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()[:16]
