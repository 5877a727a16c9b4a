"""OpenInference's attributes of a span, whose messages are spread over numbered names, as the GenAI conventions'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from cm2_agent.dialects import semconv
from cm2_agent.importers.chat import mapping_of
from cm2_agent.importers.spans_to_traces import chat_attributes, tool_attributes, unpacked
from cm2_agent.types.json_values import JSON

KIND: Final = "openinference.span.kind"
_MESSAGE = re.compile(r"llm\.(input|output)_messages\.(\d{1,6})\.message\.(.+)")
_CALL = re.compile(r"tool_calls\.(\d{1,4})\.tool_call\.(id|function\.name|function\.arguments)")
_CONTENT = re.compile(r"contents\.(\d{1,4})\.message_content\.(.+)")


def genai_attributes(attributes: Mapping[str, JSON], name: str) -> dict[str, JSON]:
    """The conventions' attributes of a model call, a tool or an agent; nothing for a span of another kind. Raises
    TraceError where the messages cannot be read."""
    kind = str(attributes.get(KIND, "")).upper()
    if kind == "TOOL":
        arguments = attributes.get("input.value", attributes.get("tool.parameters"))
        return tool_attributes(attributes.get("tool.name") or name, arguments, attributes.get("output.value"))
    if kind == "AGENT":
        agent = attributes.get("agent.name") or name
        return {semconv.OPERATION: semconv.INVOKE_AGENT, semconv.AGENT_NAME: agent}
    asked, answered = _messages(attributes, "input"), _messages(attributes, "output")
    if not asked and not answered:
        return {}
    tools = [unpacked(attributes[key]) for key in sorted(attributes) if key.endswith(".tool.json_schema")]
    return chat_attributes(asked, answered, tools=tools or None, model=attributes.get("llm.model_name"))


def _messages(attributes: Mapping[str, JSON], side: str) -> list[JSON]:
    found: dict[int, dict[str, JSON]] = {}
    for key, value in attributes.items():
        match = _MESSAGE.fullmatch(key)
        if match is not None and match.group(1) == side:
            found.setdefault(int(match.group(2)), {})[match.group(3)] = value
    return [_message(found[number]) for number in sorted(found)]


def _message(fields: Mapping[str, JSON]) -> dict[str, JSON]:
    message: dict[str, JSON] = {"role": fields.get("role"), "content": fields.get("content")}
    calls, contents = _numbered(fields, _CALL), _numbered(fields, _CONTENT)
    if contents and not message["content"]:
        message["content"] = [_part(one) for one in contents]
    if calls:
        message["tool_calls"] = [
            {"id": one.get("id"), "name": one.get("function.name"), "arguments": one.get("function.arguments")}
            for one in calls
        ]
    for key in ("tool_call_id", "name"):
        if fields.get(key) is not None:
            message[key] = fields[key]
    return message


def _numbered(fields: Mapping[str, JSON], pattern: re.Pattern[str]) -> list[dict[str, JSON]]:
    found: dict[int, dict[str, JSON]] = {}
    matches: Iterable[tuple[re.Match[str] | None, JSON]] = ((pattern.fullmatch(key), fields[key]) for key in fields)
    for match, value in matches:
        if match is not None:
            found.setdefault(int(match.group(1)), {})[match.group(2)] = value
    return [found[number] for number in sorted(found)]


def _part(fields: Mapping[str, JSON]) -> JSON:
    image = fields.get("image.image.url", mapping_of(fields.get("image")).get("image.url"))
    if isinstance(image, str):
        return {"type": "image_url", "image_url": {"url": image}}
    kind = "reasoning" if fields.get("type") == "reasoning" else "text"
    return {"type": kind, "text": fields.get("text") or ""}


__all__ = ["KIND", "genai_attributes"]
