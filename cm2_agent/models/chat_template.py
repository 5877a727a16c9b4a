"""LangChain's messages as a chat template wants them, and the message that a model's text means."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

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

# An opened call that never closes runs to the end of the text: it is malformed, not a reply.
_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
# Ids of tool calls are derived, not drawn, so that the same run gives the same bytes.
_NAMESPACE = uuid.UUID("6f0d2f4c-5a8e-4b8e-9d0c-3f8f4c1f2a11")


def parse_completion(text: str, salt: str = "") -> AIMessage:
    """The message that a completion means: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` blocks are its tool
    calls.

    What stands outside the blocks is the content. A block that does not hold such an object becomes an invalid tool
    call with the reason; nothing is raised, whatever the text. The ids of the calls are a function of `salt` and the
    text: give each call of a dialogue its own salt, since a model may write the same text twice.

    >>> message = parse_completion('One moment.<tool_call>{"name": "get_order", "arguments": {"id": 7}}</tool_call>')
    >>> message.content, message.tool_calls[0]["name"], message.tool_calls[0]["args"]
    ('One moment.', 'get_order', {'id': 7})
    """
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for number, match in enumerate(_CALL.finditer(text)):
        body = match.group(1).strip()
        call_id = f"call_{uuid.uuid5(_NAMESPACE, f'{salt}:{number}:{text}').hex[:16]}"
        parsed = _call(body) if match.group(2) else "the tool call is not closed"
        if isinstance(parsed, str):
            name = re.search(r'"name"\s*:\s*"([^"]*)"', body)
            invalid.append(
                InvalidToolCall(
                    name=name and name.group(1), args=body, id=call_id, error=parsed, type="invalid_tool_call"
                )
            )
        else:
            calls.append(ToolCall(name=parsed[0], args=parsed[1], id=call_id, type="tool_call"))
    content = _CALL.sub("", text).strip()
    return AIMessage(content=content, tool_calls=calls, invalid_tool_calls=invalid)


def _call(body: str) -> tuple[str, dict[str, Any]] | str:
    """Name and arguments, or what is wrong with the text."""
    try:
        value = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return 'expected an object with "name" and "arguments"'
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):  # some models write the arguments as a string of JSON
        try:
            arguments = json.loads(arguments, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return f"the arguments are not JSON: {error}"
    return (value["name"], arguments) if isinstance(arguments, dict) else "the arguments are not an object"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def template_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain messages as chat templates want them; arguments stay objects, invalid calls stand as the text they
    were."""
    return [_template_message(message) for message in messages]


def _template_message(message: BaseMessage) -> dict[str, Any]:
    text = str(message.text)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": text}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": text}
    if isinstance(message, ToolMessage):
        entry = {"role": "tool", "content": text, "tool_call_id": message.tool_call_id}
        return entry | ({"name": message.name} if message.name else {})
    if isinstance(message, AIMessage):
        text += "".join(f"<tool_call>{call['args'] or ''}</tool_call>" for call in message.invalid_tool_calls)
        calls = [
            {"type": "function", "function": {"name": c["name"], "arguments": c["args"]}} for c in message.tool_calls
        ]
        return {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": text}
    raise TypeError(
        f"cannot give a {type(message).__name__} to a chat template; expected system, human, AI, tool or chat messages"
    )


def history_hash(messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]] | None) -> str:
    """16 hexadecimal digits that change when anything that the template sees does."""
    seen = json.dumps([template_messages(messages), list(tools or ())], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()[:16]
