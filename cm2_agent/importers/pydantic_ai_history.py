"""Message histories of pydantic-ai (`result.all_messages_json()`) as chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cm2_agent.types.json_values import JSON, json_text


def is_pydantic_ai(message: Mapping[str, JSON]) -> bool:
    """Whether it is a request or a response of pydantic-ai's kind."""
    return message.get("kind") in ("request", "response") and isinstance(message.get("parts"), list)


def pydantic_ai_to_chat(messages: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    """The history as chat messages. `retry-prompt` parts of a tool are its answers, marked as failed; those without a
    tool are what the framework told the model, as the user. Other answers did not fail."""
    found: list[JSON] = []
    for message in messages:
        parts = [part for part in message.get("parts") or [] if isinstance(part, Mapping)]
        if message.get("kind") == "response":
            found += _response(parts)
            continue
        instructions = message.get("instructions")
        if (
            isinstance(instructions, str)
            and instructions
            and not any(isinstance(one, Mapping) and one.get("content") == instructions for one in found)
        ):
            found.append({"role": "system", "content": instructions})
        found += [_request(part) for part in parts]
    return found


def _request(part: Mapping[str, JSON]) -> JSON:
    kind, content = part.get("part_kind"), part.get("content")
    if kind == "system-prompt":
        return {"role": "system", "content": content}
    if kind in ("tool-return", "builtin-tool-return"):
        failed = part.get("outcome") not in (None, "success")  # failed, denied, retried, interrupted
        return {**_of_tool(part), "content": _text(content), "status": "error" if failed else "success"}
    if kind == "retry-prompt":
        text = content if isinstance(content, str) else json_text(content)
        if part.get("tool_name") is None:
            return {"role": "user", "content": text}
        return {**_of_tool(part), "content": text, "status": "error"}
    return {"role": "user", "content": content if isinstance(content, str) else [*map(_user_part, _list(content))]}


def _of_tool(part: Mapping[str, JSON]) -> dict[str, JSON]:
    return {"role": "tool", "name": part.get("tool_name"), "tool_call_id": part.get("tool_call_id")}


def _response(parts: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    content: list[JSON] = []
    calls: list[JSON] = []
    answers: list[JSON] = []
    for part in parts:
        kind = part.get("part_kind")
        if kind == "text":
            content.append({"type": "text", "text": part.get("content")})
        elif kind == "thinking":
            if part.get("content"):
                content.append({"type": "thinking", "thinking": part["content"]})
        elif kind in ("tool-call", "builtin-tool-call"):
            calls.append({"id": part.get("tool_call_id"), "name": part.get("tool_name"), "arguments": part.get("args")})
        elif kind == "builtin-tool-return":
            answers.append(_request(part))
        else:
            content.append({"type": "other", **part})
    return [{"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}, *answers]


def _user_part(part: JSON) -> JSON:
    if not isinstance(part, Mapping):
        return part
    kind, url, data = part.get("kind"), part.get("url"), part.get("data")
    if isinstance(url, str) and str(kind).endswith("-url"):
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "binary" and isinstance(data, str):
        return {"type": "image_url", "image_url": {"url": f"data:{part.get('media_type')};base64,{data}"}}
    return {"type": "other", **part}


def _text(content: JSON) -> JSON:
    return content if isinstance(content, str) else json_text(content)


def _list(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []


__all__ = ["is_pydantic_ai", "pydantic_ai_to_chat"]
