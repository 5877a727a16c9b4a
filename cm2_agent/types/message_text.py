"""The two spellings of a message, as it is stored and as it is hashed, made together: a collector makes them for every
message that comes, and the strings in them are what takes the time."""

from __future__ import annotations

from json.encoder import encode_basestring

from cm2_agent.types.json_values import canonical_json, json_text
from cm2_agent.types.messages import ROLES, Message, Part, Text, ToolCall, ToolCallResponse, part_to_json

__all__ = ["spellings"]


def spellings(message: Message) -> tuple[str, str]:
    """`json_text` and `canonical_json` of what `to_json` gives. Raises TypeError or ValueError where a part is not
    JSON."""
    parts = [_part(part) for part in message.parts]
    name, reason = message.name, message.finish_reason
    if message.extra or message.role not in ROLES or not _is_text(name) or not _is_text(reason):
        data = message.to_json()
        return json_text(data), canonical_json(data)
    named = "" if name is None else f'"name":{encode_basestring(name)}'
    ended = "" if reason is None else f'"finish_reason":{encode_basestring(reason)}'
    in_order, sorted_ = ",".join([one for one, _ in parts]), ",".join([one for _, one in parts])
    role = f'"role":"{message.role}"'
    return (
        f'{{{role},"parts":[{in_order}]{named and "," + named}{ended and "," + ended}}}',
        f'{{{ended and ended + ","}{named and named + ","}"parts":[{sorted_}],{role}}}',
    )


def _part(part: Part) -> tuple[str, str]:
    if isinstance(part, Text) and not part.extra and type(part.content) is str:
        content = f'"content":{encode_basestring(part.content)}'
        return f'{{"type":"text",{content}}}', f'{{{content},"type":"text"}}'
    if (
        isinstance(part, ToolCallResponse)
        and type(part.response) is str
        and type(part.id) is str
        and part.error is False
        and not part.extra
    ):
        said = f'"id":{encode_basestring(part.id)},"response":{encode_basestring(part.response)}'
        return f'{{"type":"tool_call_response",{said}}}', f'{{{said},"type":"tool_call_response"}}'
    if isinstance(part, ToolCall) and type(part.id) is str and type(part.name) is str and not part.extra:
        who = f'"id":{encode_basestring(part.id)},"name":{encode_basestring(part.name)}'
        given, ordered = json_text(part.arguments), canonical_json(part.arguments)
        return (
            f'{{"type":"tool_call",{who},"arguments":{given}}}',
            f'{{"arguments":{ordered},{who},"type":"tool_call"}}',
        )
    data = part_to_json(part)
    return json_text(data), canonical_json(data)


def _is_text(value: object) -> bool:
    return value is None or type(value) is str
