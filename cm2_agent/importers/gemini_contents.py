"""Contents of Gemini's API (`{"role": "model", "parts": [{"text": …}, {"functionCall": …}]}`) as chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cm2_agent.types.json_values import JSON

_KEYS = frozenset(
    {"text", "functionCall", "function_call", "functionResponse", "function_response", "inlineData", "fileData"}
)


def is_gemini(message: Mapping[str, JSON]) -> bool:
    """Whether a message is a content: its parts bear no type, and one of Gemini's keys."""
    parts = message.get("parts")
    if not isinstance(parts, list) or not parts:
        return False
    return all(isinstance(part, Mapping) and "type" not in part and bool(_KEYS & part.keys()) for part in parts)


def gemini_to_chat(contents: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    """The contents as chat messages. Calls bear no ids: they are paired by their order."""
    found: list[JSON] = []
    for content in contents:
        texts: list[JSON] = []
        calls: list[JSON] = []
        answers: list[JSON] = []
        parts = content.get("parts")
        for part in parts if isinstance(parts, list) else []:
            if not isinstance(part, Mapping):
                texts.append(part)
                continue
            call = part.get("functionCall", part.get("function_call"))
            answer = part.get("functionResponse", part.get("function_response"))
            if isinstance(call, Mapping):
                calls.append({"id": call.get("id"), "name": call.get("name"), "args": call.get("args")})
            elif isinstance(answer, Mapping):
                answers.append(
                    {
                        "role": "tool",
                        "name": answer.get("name"),
                        "tool_call_id": answer.get("id"),
                        "content": answer.get("response"),
                    }
                )
            elif "text" in part:
                texts.append({"type": "reasoning" if part.get("thought") is True else "text", "text": part["text"]})
            else:
                texts.append(_media(part))
        role = content.get("role") or "user"
        if texts or calls or not answers:
            found.append({"role": role, "content": texts, **({"tool_calls": calls} if calls else {})})
        found += answers
    return found


def _media(part: Mapping[str, JSON]) -> JSON:
    inline, file = part.get("inlineData", part.get("inline_data")), part.get("fileData", part.get("file_data"))
    if isinstance(inline, Mapping) and isinstance(inline.get("data"), str):
        kind = str(inline.get("mimeType", inline.get("mime_type")) or "application/octet-stream")
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{inline['data']}"}}
    if isinstance(file, Mapping) and isinstance(file.get("fileUri", file.get("file_uri")), str):
        return {"type": "image_url", "image_url": {"url": file.get("fileUri", file.get("file_uri"))}}
    return {"type": "other", **part}


__all__ = ["gemini_to_chat", "is_gemini"]
