"""Messages of Vercel's AI SDK, as its interfaces keep them (`UIMessage`) and as its models get them (`ModelMessage`).

Source: ai-sdk.dev, "UIMessage" and "ModelMessage"; of version 4 `toolInvocations` and `tool-invocation` parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from cm2_agent.types.json_values import JSON, json_text

_FAILED: Final = frozenset({"error-text", "error-json", "execution-denied"})
_MARKS: Final = frozenset({"step-start", "dynamic-tool", "tool-invocation"})


def is_ai_sdk(message: Mapping[str, JSON]) -> bool:
    """Whether it is a message with parts of the SDK's kinds, or with `toolInvocations`."""
    if not isinstance(message.get("role"), str):
        return False
    if isinstance(message.get("toolInvocations"), list):
        return True
    blocks = [one for one in _list(message.get("content")) if isinstance(one, Mapping)]
    if any(one.get("type") in ("tool-call", "tool-result") and "toolCallId" in one for one in blocks):
        return True
    return any(
        part.get("type") in _MARKS
        or "toolCallId" in part
        or (part.get("type") in ("text", "reasoning") and isinstance(part.get("text"), str) and "content" not in part)
        for part in _list(message.get("parts"))
        if isinstance(part, Mapping)
    )


def ai_sdk_to_chat(messages: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    """The messages as chat messages: a message of an interface holds all steps of an answer, its calls with what they
    answered; each step becomes the assistant's message and its tools'."""
    found: list[JSON] = []
    for message in messages:
        parts = message.get("parts")
        if not isinstance(parts, list) or not parts:
            invocations = [
                {"type": "tool-invocation", "toolInvocation": one} for one in _list(message.get("toolInvocations"))
            ]
            parts = [*invocations, *_content(message.get("content"))]
        if message["role"] == "tool":
            found += [_answer(one) for one in _list(message.get("content")) if isinstance(one, Mapping)]
        elif message["role"] == "assistant":
            found += _steps(parts)
        else:
            found.append({"role": message["role"], "content": [_part(one) for one in parts]})
    return found


def _steps(parts: Sequence[JSON]) -> Iterator[JSON]:
    content: list[JSON] = []
    calls: list[JSON] = []
    answers: list[JSON] = []
    for part in [*parts, {"type": "step-start"}]:
        call = _call(part)
        if call is not None:
            calls.append(call)
            answers += _answered(part)
            continue
        if isinstance(part, Mapping) and part.get("type") == "tool-result":  # of a tool that the provider runs
            answers.append(_answer(part))
            continue
        begins = isinstance(part, Mapping) and part.get("type") == "step-start"
        if (begins or calls) and (content or calls):
            yield {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
            yield from answers
            content, calls, answers = [], [], []
        if not begins:
            content.append(_part(part))


def _call(part: JSON) -> JSON:
    if not isinstance(part, Mapping):
        return None
    inner = _invocation(part)
    kind = str(part.get("type"))
    if "toolCallId" not in inner or kind == "tool-result":
        return None
    name = inner.get("toolName") or kind.removeprefix("tool-")
    arguments = next((inner[key] for key in ("input", "args", "rawInput") if inner.get(key) is not None), None)
    return {"id": inner["toolCallId"], "name": name, "arguments": arguments}


def _invocation(part: Mapping[str, JSON]) -> Mapping[str, JSON]:
    inner = part.get("toolInvocation")
    return inner if isinstance(inner, Mapping) else part


def _answered(part: JSON) -> list[JSON]:
    """What a part of an interface's says of its call's answer: nothing while the call runs."""
    inner = _invocation(part) if isinstance(part, Mapping) else {}
    state, identity = inner.get("state"), inner.get("toolCallId")
    if state in ("output-error", "output-denied"):
        text = inner.get("errorText") or "the call was denied"
        return [{"role": "tool", "tool_call_id": identity, "content": text, "is_error": True}]
    if state in ("output-available", "result"):
        answer = inner.get("output", inner.get("result"))
        return [{"role": "tool", "tool_call_id": identity, "content": answer, "is_error": False}]
    return []


def _answer(block: Mapping[str, JSON]) -> JSON:
    output, failed = block.get("output", block.get("result")), block.get("isError") is True
    if isinstance(output, Mapping) and isinstance(output.get("type"), str) and {"value", "reason"} & output.keys():
        failed = failed or output["type"] in _FAILED
        output = output.get("value", output.get("reason"))
    elif isinstance(output, Mapping) and output.get("type") == "execution-denied":
        failed, output = True, "the call was denied"
    return {"role": "tool", "tool_call_id": block.get("toolCallId"), "content": output, "is_error": failed}


def _part(part: JSON) -> JSON:
    if not isinstance(part, Mapping):
        return part
    url, data = part.get("url"), part.get("image", part.get("data"))
    mime = str(part.get("mediaType", part.get("mimeType", "")))
    if mime.startswith("image/") or part.get("type") == "image":
        if isinstance(url, str):
            return {"type": "image_url", "image_url": {"url": url}}
        if isinstance(data, str):
            web = data.startswith(("http:", "https:", "data:"))
            return {"type": "image_url", "image_url": {"url": data if web else f"data:{mime};base64,{data}"}}
    if part.get("type") == "reasoning" and not isinstance(part.get("text"), str):
        return {"type": "reasoning", "reasoning": str(part.get("reasoning") or json_text(part))}
    return part


def _content(content: JSON) -> list[JSON]:
    return [{"type": "text", "text": content}] if isinstance(content, str) and content else _list(content)


def _list(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []


__all__ = ["ai_sdk_to_chat", "is_ai_sdk"]
