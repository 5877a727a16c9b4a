"""OpenTelemetry's semantic conventions for generative AI, in their current form (messages as attributes) and the older
one (messages as events), with the `cm2.*` attributes that our own exporter adds, and what pydantic-ai adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cm2_agent.dialects import semconv
from cm2_agent.dialects.part_messages import genai_part, read_message, read_messages
from cm2_agent.dialects.readings import (
    NO_FACTS,
    AgentReading,
    ChatReading,
    Facts,
    Reading,
    StepReading,
    ToolReading,
    Unread,
)
from cm2_agent.dialects.span_record import SpanEvent, SpanRecord
from cm2_agent.dialects.token_text import read_tokens
from cm2_agent.dialects.values import counted, definitions, first, items, name_of, parsed, structure, text
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message
from cm2_agent.types.run_attributes import TOOL_BACKEND, TOOL_FAULT

NAME: Final = "genai"
MARKS: Final = ("",)
_CHATS = frozenset({"chat", "text_completion", "generate_content"})
_AGENTS = frozenset({"invoke_agent", "invoke_workflow"})
_METADATA = "cm2.metadata."
_OWN = frozenset(
    {
        semconv.STATUS,
        semconv.MODEL_VERSION,
        semconv.SAMPLING,
        semconv.PROMPT_IDS,
        semconv.COMPLETION_IDS,
        semconv.LOGPROBS,
        TOOL_BACKEND,
        TOOL_FAULT,
    }
)
"""The `cm2.*` attributes that are no facts about a run."""
_SPOKEN = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
"""The events of the older form → the role of their message."""
_CHOICE = "gen_ai.choice"
_DETAILS = "gen_ai.client.inference.operation.details"
"""The event whose attributes are those of the current form, where content is recorded on events."""


def read(span: SpanRecord) -> Reading | Unread | None:
    """The span by its operation. None where it bears none of the conventions' names; raises TraceError for messages
    that cannot be read."""
    given = span.attributes
    operation = given.get(semconv.OPERATION)
    if operation is None:
        if any(name in given for name in (semconv.REQUEST_MODEL, semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES)):
            operation = semconv.CHAT
        elif semconv.TOOL_NAME in given:
            operation = semconv.EXECUTE_TOOL
        else:
            return StepReading(facts=read_facts(given)) if any(name.startswith("gen_ai.") for name in given) else None
    if operation in _CHATS:
        return read_chat(span)
    if operation == semconv.EXECUTE_TOOL:
        return read_tool(span)
    if operation in _AGENTS:
        return _agent(span)
    if operation == semconv.STEP:
        return StepReading(facts=read_facts(given))
    return Unread(f"the operation {str(operation)[:40]!r} is no part of a dialogue")


def read_chat(span: SpanRecord) -> ChatReading:
    """A model call, wherever its messages stand."""
    given = {**span.attributes, **_details(span.events)}
    asked, answered = _from_events(_events(span))
    prompt = read_messages(given.get(semconv.INPUT_MESSAGES)) or asked
    system = system_message(given.get(semconv.INSTRUCTIONS))
    if system is not None and not any(message.role == "system" for message in prompt):
        prompt = [system, *prompt]
    outputs = read_messages(given.get(semconv.OUTPUT_MESSAGES), default="assistant") or answered
    output = next((message for message in outputs if message.role == "assistant"), None)
    tokens = read_tokens(given)
    sampling = read_sampling(given)
    if tokens.problem is not None:
        sampling["untrainable"] = tokens.problem
    return ChatReading(
        input=tuple(prompt),
        output=output,
        model=text(given.get(semconv.RESPONSE_MODEL)) or text(given.get(semconv.REQUEST_MODEL)),
        model_version=text(given.get(semconv.MODEL_VERSION)),
        tools=definitions(given.get(semconv.TOOL_DEFINITIONS)),
        sampling=sampling,
        usage=read_usage(given),
        finish_reason=finish_reason(given, output),
        prompt_ids=tokens.prompt_ids,
        completion_ids=tokens.completion_ids,
        logprobs=tokens.logprobs,
        facts=read_facts(given),
    )


def read_tool(span: SpanRecord) -> ToolReading:
    given = span.attributes
    arguments = first(given, semconv.TOOL_ARGUMENTS, "tool_arguments")
    return ToolReading(
        name=text(given.get(semconv.TOOL_NAME)) or span.name.removeprefix(f"{semconv.EXECUTE_TOOL} ") or "tool",
        call_id=name_of(given.get(semconv.TOOL_CALL_ID)),
        arguments=parsed(arguments),
        result=structure(first(given, semconv.TOOL_RESULT, "tool_response")),
        backend=text(given.get(TOOL_BACKEND)),
        fault=text(given.get(TOOL_FAULT)),
        facts=read_facts(given),
    )


def read_facts(given: Mapping[str, JSON]) -> Facts:
    """Whose span it is, by the conventions' names and those that are common beside them; our own exporter's metadata
    and facts of the run."""
    facts = {
        name.removeprefix(_METADATA): structure(value)
        for name, value in given.items()
        if name.startswith("cm2.") and name not in _OWN
    }
    extra = parsed(first(given, "metadata", "logfire.metadata"))
    if isinstance(extra, dict):
        facts = {**{str(key): value for key, value in extra.items() if not str(key).startswith("cm2.")}, **facts}
    thread = name_of(given.get(semconv.CONVERSATION))
    user = name_of(first(given, "user.id", "enduser.id") or facts.get("user_id"))
    session = name_of(given.get("session.id") or facts.get("session_id"))
    if not facts and thread is user is session is None:
        return NO_FACTS
    tags = facts.get("tags")
    return Facts(
        thread=thread,
        user=user,
        session=session,
        tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        attributes=facts,
    )


def read_sampling(given: Mapping[str, JSON]) -> dict[str, JSON]:
    """The sampling settings: the conventions' and, over them, our own exporter's."""
    found = {name: given[attribute] for name, attribute in semconv.REQUEST.items() if given.get(attribute) is not None}
    if stop := first(given, "gen_ai.request.stop_sequences"):
        found["stop"] = parsed(stop)
    own = parsed(given.get(semconv.SAMPLING))
    return {**found, **own} if isinstance(own, dict) else found


def read_usage(given: Mapping[str, JSON]) -> dict[str, int]:
    return counted(
        input_tokens=first(given, semconv.INPUT_TOKENS, "gen_ai.usage.prompt_tokens"),
        output_tokens=first(given, semconv.OUTPUT_TOKENS, "gen_ai.usage.completion_tokens"),
        cache_read=first(given, "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.details.cache_read_tokens"),
        cache_creation=first(given, "gen_ai.usage.cache_creation.input_tokens"),
        reasoning=first(given, "gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.details.reasoning_tokens"),
    )


def finish_reason(given: Mapping[str, JSON], output: Message | None) -> str | None:
    reasons = items(given.get(semconv.FINISH_REASONS))
    return text(reasons[0]) if reasons else None if output is None else output.finish_reason


def system_message(instructions: JSON) -> Message | None:
    """The system prompt that stands beside the messages: a list of parts, or a text."""
    found = parsed(instructions)
    parts = found if isinstance(found, list) else [found] if found else []
    return Message(role="system", parts=tuple(genai_part(part) for part in parts)) if parts else None


def _agent(span: SpanRecord) -> AgentReading:
    given = {**span.attributes, **_details(span.events)}
    whole = read_messages(given.get("pydantic_ai.all_messages"))
    system = system_message(given.get(semconv.INSTRUCTIONS))
    prompt = read_messages(given.get(semconv.INPUT_MESSAGES))
    if system is not None and prompt and prompt[0].role != "system":
        prompt = [system, *prompt]
    name = text(given.get(semconv.AGENT_NAME)) or text(given.get("gen_ai.workflow.name"))
    return AgentReading(
        name=name or span.name.removeprefix(f"{semconv.INVOKE_AGENT} ") or "agent",
        named=name is not None,
        input=tuple(prompt),
        output=tuple(whole or read_messages(given.get(semconv.OUTPUT_MESSAGES), default="assistant")),
        status=text(given.get(semconv.STATUS)),
        facts=read_facts(given),
    )


def _details(events: Iterable[SpanEvent]) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for event in events:
        if event.name == _DETAILS:
            found.update(event.attributes)
    return found


def _events(span: SpanRecord) -> list[SpanEvent]:
    """The span's events, and those that stand in an attribute as a list (pydantic-ai's first format)."""
    listed = [one for one in items(span.attributes.get("events")) if isinstance(one, Mapping)]
    return [*span.events, *(SpanEvent(name=str(one.get("event.name", "")), attributes=one) for one in listed)]


def _from_events(events: Iterable[SpanEvent]) -> tuple[list[Message], list[Message]]:
    """The prompt and the answers that the events of the older form hold."""
    asked: list[Message] = []
    answered: list[Message] = []
    for event in events:
        role = _SPOKEN.get(event.name)
        if role is None and event.name != _CHOICE:
            continue
        body = _body(event.attributes)
        if event.name == _CHOICE:
            inner = parsed(body.get("message"))
            data = {**body, **inner} if isinstance(inner, Mapping) else {**body, "content": inner} if inner else body
            answered += read_message({**data, "role": "assistant"})
        else:
            asked += read_message({**body, "role": text(body.get("role")) or role})
    return asked, answered


def _body(given: Mapping[str, JSON]) -> dict[str, JSON]:
    """An event's body: its attributes, or what one of them holds as JSON."""
    whole = parsed(first(given, "gen_ai.event.content", "event_body", "body"))
    body = {**given, **whole} if isinstance(whole, dict) else dict(given)
    if isinstance(body.get("content"), str):
        listed = structure(body["content"])
        if isinstance(listed, list) and all(isinstance(one, dict) and "type" in one for one in listed):
            body["content"] = listed
    return body


__all__ = [
    "MARKS",
    "NAME",
    "finish_reason",
    "read",
    "read_chat",
    "read_facts",
    "read_sampling",
    "read_tool",
    "read_usage",
    "system_message",
]
