"""OpenInference (Arize Phoenix): `openinference.span.kind`, messages spread over numbered attributes, and the values
that a framework passed around as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cm2_agent.dialects.langchain_dicts import is_framework_key, langchain_messages
from cm2_agent.dialects.part_messages import by_speaker, read_call, role_of
from cm2_agent.dialects.readings import AgentReading, ChatReading, Facts, Reading, StepReading, ToolReading, Unread
from cm2_agent.dialects.reported_tokens import tokens_of_response
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.values import counted, first, items, name_of, numbered, parsed, structure, text, tool_specs
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Blob, Message, Part, Reasoning, Text, ToolCallResponse, Uri, other_part

NAME: Final = "openinference"
MARKS: Final = ("openinference.", "llm.")
KIND: Final = "openinference.span.kind"
_SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "n": "n",
    "tool_choice": "tool_choice",
}


def read(span: SpanRecord) -> Reading | Unread | None:
    """The span by its kind. None where it bears neither a kind nor this dialect's messages."""
    given = span.attributes
    kind = given.get(KIND)
    if kind is None:
        if not any(name.startswith(("llm.input_messages.", "llm.output_messages.")) for name in given):
            return None
        kind = "LLM"
    kind = str(kind).upper()
    facts = _facts(given)
    if kind == "LLM":
        return _chat(given, facts)
    if kind == "TOOL":
        return _tool(span, facts)
    if kind in ("AGENT", "CHAIN"):
        agent = text(given.get("agent.name")) or text(given.get("graph.node.name"))
        return AgentReading(
            name=(agent if kind == "AGENT" else None) or span.name or "agent",
            named=kind == "AGENT",
            input=tuple(langchain_messages(given.get("input.value"))),
            output=tuple(langchain_messages(given.get("output.value"))),
            facts=facts,
        )
    if kind in ("PROMPT", "GUARDRAIL", "EVALUATOR"):
        return StepReading(facts=facts)
    return Unread(f"a span of kind {kind[:40]} is no part of a dialogue")


def _chat(given: Mapping[str, JSON], facts: Facts) -> ChatReading:
    prompt = [message for one in numbered(given, "llm.input_messages") for message in _message(one)]
    outputs = [message for one in numbered(given, "llm.output_messages") for message in _message(one, "assistant")]
    output = next((message for message in outputs if message.role == "assistant"), None)
    settings = parsed(given.get("llm.invocation_parameters"))
    asked: Mapping[str, JSON] = settings if isinstance(settings, dict) else {}
    sampling = {_SETTINGS[name]: value for name, value in asked.items() if name in _SETTINGS and value is not None}
    tokens = tokens_of_response(given.get("output.value"))
    if tokens.problem is not None:
        sampling["untrainable"] = tokens.problem
    if tokens.logprobs is not None:
        sampling.setdefault("logprobs", "unknown")
    return ChatReading(
        input=tuple(prompt),
        output=output,
        model=text(given.get("llm.model_name")) or text(asked.get("model")),
        tools=tool_specs([one.get("tool.json_schema") for one in numbered(given, "llm.tools")]),
        sampling=sampling,
        usage=counted(
            input_tokens=given.get("llm.token_count.prompt"),
            output_tokens=given.get("llm.token_count.completion"),
            cache_read=given.get("llm.token_count.prompt_details.cache_read"),
            cache_creation=given.get("llm.token_count.prompt_details.cache_write"),
            reasoning=given.get("llm.token_count.completion_details.reasoning"),
        ),
        finish_reason=text(given.get("llm.finish_reason")),
        prompt_ids=tokens.prompt_ids,
        completion_ids=tokens.completion_ids,
        logprobs=tokens.logprobs,
        facts=facts,
    )


def _message(given: Mapping[str, JSON], default: str = "user") -> list[Message]:
    """One message; its keys come as `message.role`, `message.tool_calls.0.tool_call.id`, …"""
    role = role_of(given.get("message.role") or default)
    parts: list[Part] = []
    content = given.get("message.content")
    blocks = numbered(given, "message.contents")
    if isinstance(content, str) and content and not blocks:
        parts.append(Text(content=content))
    parts += [_block(block) for block in blocks]
    calls = [
        {
            "id": call.get("tool_call.id"),
            "name": call.get("tool_call.function.name"),
            "arguments": call.get("tool_call.function.arguments"),
        }
        for call in numbered(given, "message.tool_calls")
    ]
    if name := text(given.get("message.function_call_name")):
        calls.append({"id": None, "name": name, "arguments": given.get("message.function_call_arguments_json")})
    if role == "tool":
        answer = "\n".join(part.content for part in parts if isinstance(part, Text)) if parts else content
        parts = [ToolCallResponse(id=name_of(given.get("message.tool_call_id")), response=answer)]
    parts += [read_call(call) for call in calls]
    return by_speaker(Message(role=role, parts=tuple(parts), name=text(given.get("message.name"))))


def _block(given: Mapping[str, JSON]) -> Part:
    kind = given.get("message_content.type")
    said = given.get("message_content.text")
    if kind == "reasoning" and isinstance(said, str):
        return Reasoning(content=said)
    if isinstance(said, str):
        return Text(content=said)
    address = text(given.get("message_content.image.image.url"))
    if address is not None:
        head, comma, body = address.partition(";base64,")
        if head.startswith("data:") and comma:
            return Blob(content=body, modality="image", mime_type=head.removeprefix("data:") or None)
        return Uri(uri=address, modality="image")
    return other_part({"type": str(kind or "unknown"), **given})


def _tool(span: SpanRecord, facts: Facts) -> ToolReading:
    given = span.attributes
    answered = langchain_messages(given.get("output.value"))
    answer = next((part for message in answered for part in message.responses), None)
    arguments = parsed(first(given, "tool.parameters", "input.value"))
    call_id = name_of(first(given, "tool_call.id", "tool.id"))
    value = given.get("output.value")
    return ToolReading(
        name=text(given.get("tool.name")) or span.name or "tool",
        call_id=call_id or (None if answer is None else answer.id),
        arguments=arguments,
        result=answer.response if answer is not None else structure(value),
        failed=answer is not None and answer.error,
        facts=facts,
    )


def _facts(given: Mapping[str, JSON]) -> Facts:
    metadata = parsed(given.get("metadata"))
    known = {str(key): value for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    session = name_of(given.get("session.id"))
    own = {name: value for name, value in known.items() if not is_framework_key(name) and not name.startswith("cm2.")}
    return Facts(
        thread=name_of(known.get("thread_id")) or session,
        user=name_of(first(given, "user.id") or known.get("user_id")),
        session=session,
        tags=tuple(str(tag) for tag in items(given.get("tag.tags"))),
        attributes=own,
    )


__all__ = ["KIND", "MARKS", "NAME", "read"]
