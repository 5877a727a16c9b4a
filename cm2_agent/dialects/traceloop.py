"""Traceloop's OpenLLMetry: `gen_ai.prompt.N` and `gen_ai.completion.N` of its earlier releases (later ones write the
conventions' messages), and the workflows, agents and tools of its decorators (`traceloop.entity.*`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from cm2_agent.dialects import genai, semconv
from cm2_agent.dialects.part_messages import read_message
from cm2_agent.dialects.readings import AgentReading, ChatReading, Facts, Reading, StepReading, ToolReading, Unread
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.values import counted, first, name_of, numbered, parsed, structure, text, tool_specs
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message

NAME: Final = "traceloop"
MARKS: Final = ("traceloop.", "llm.", "gen_ai.prompt.", "gen_ai.completion.")
_KIND = "traceloop.span.kind"
_NUMBERED = ("gen_ai.prompt.", "gen_ai.completion.")
_OWN = ("traceloop.", *_NUMBERED)
_REQUEST = "llm.request.type"
_PROPERTIES = "traceloop.association.properties."
_THREADS = ("thread_id", "conversation_id", "chat_id", "session_id")


def read(span: SpanRecord) -> Reading | Unread | None:
    """The span by its entity's kind or its request's. None where it bears none of traceloop's own names: the
    conventions' dialect reads it then."""
    given = span.attributes
    if given.get(_REQUEST) is None and not any(name.startswith(_OWN) for name in given):
        return None
    kind = given.get(_KIND)
    facts = _facts(given)
    if kind in ("workflow", "agent"):
        name = text(given.get("traceloop.entity.name"))
        return AgentReading(name=name or span.name, named=kind == "agent", facts=facts)
    if kind == "tool":
        return _tool(span, facts)
    if any(name.startswith(_NUMBERED) for name in given):
        return _chat(span, facts)
    request = given.get(_REQUEST)
    if request is not None:
        if request in ("chat", "completion"):
            return _chat(span, facts)
        return Unread(f"a request of type {str(request)[:40]!r} is no part of a dialogue")
    if kind is not None:
        return StepReading(facts=facts)
    found = genai.read(span)
    if isinstance(found, ChatReading):
        return _with(found, facts)
    return found if found is not None else StepReading(facts=facts)


def _chat(span: SpanRecord, facts: Facts) -> ChatReading:
    given = span.attributes
    prompt = [message for one in numbered(given, "gen_ai.prompt") for message in _message(one)]
    outputs = [message for one in numbered(given, "gen_ai.completion") for message in _message(one, "assistant")]
    output = next((message for message in outputs if message.role == "assistant"), None)
    usage = counted(
        cache_read=given.get("gen_ai.usage.cache_read_input_tokens"), reasoning=given.get("llm.usage.reasoning_tokens")
    )
    if not prompt and output is None:
        return _with(genai.read_chat(span), facts)
    return ChatReading(
        input=tuple(prompt),
        output=output,
        model=text(given.get(semconv.RESPONSE_MODEL)) or text(given.get(semconv.REQUEST_MODEL)),
        tools=tool_specs(list(numbered(given, "llm.request.functions"))),
        sampling=genai.read_sampling(given),
        usage={**usage, **genai.read_usage(given)},
        finish_reason=None if output is None else output.finish_reason,
        facts=facts,
    )


def _message(given: Mapping[str, JSON], default: str = "user") -> list[Message]:
    """One message; its content is text, or a list of blocks as JSON. A completion without anything in it is none."""
    if default == "assistant" and not (set(given) - {"role", "finish_reason"}):
        return []
    content = structure(given.get("content"))
    if isinstance(content, dict) or not _blocks(content):
        content = given.get("content")
    calls = numbered(given, "tool_calls")
    return read_message({**given, "role": given.get("role") or default, "content": content, "tool_calls": calls})


def _blocks(content: JSON) -> bool:
    return isinstance(content, list) and all(isinstance(one, dict) and "type" in one for one in content)


def _tool(span: SpanRecord, facts: Facts) -> ToolReading:
    """A tool's function under traceloop's decorator: its arguments stand as JSON, its result too."""
    given = span.attributes
    asked = parsed(given.get("traceloop.entity.input"))
    arguments = asked
    if isinstance(asked, dict) and ("args" in asked or "kwargs" in asked):
        arguments = asked.get("kwargs") or ({"args": asked["args"]} if asked.get("args") else {})
    return ToolReading(
        name=text(given.get("traceloop.entity.name")) or span.name or "tool",
        call_id=name_of(given.get(semconv.TOOL_CALL_ID)),
        arguments=arguments,
        result=parsed(given.get("traceloop.entity.output")),
        facts=facts,
    )


def _facts(given: Mapping[str, JSON]) -> Facts:
    own = {name.removeprefix(_PROPERTIES): value for name, value in given.items() if name.startswith(_PROPERTIES)}
    return Facts(
        thread=name_of(given.get(semconv.CONVERSATION) or first(own, *_THREADS)),
        user=name_of(first(own, "user_id", "userId") or given.get("user.id")),
        session=name_of(own.get("session_id") or given.get("session.id")),
        attributes={name: value for name, value in own.items() if not name.startswith("cm2.")},
    )


def _with(chat: ChatReading, facts: Facts) -> ChatReading:
    return replace(chat, facts=facts)


__all__ = ["MARKS", "NAME", "read"]
