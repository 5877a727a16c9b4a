"""Vercel's AI SDK (`experimental_telemetry`): `ai.generateText`, `ai.streamText` and `ai.generateObject` with the model
calls (`….doGenerate`, `….doStream`) and tool calls (`ai.toolCall`) below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cm2_agent.dialects import genai, semconv
from cm2_agent.dialects.part_messages import read_call, read_messages
from cm2_agent.dialects.readings import AgentReading, ChatReading, Facts, Reading, ToolReading, Unread
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.values import counted, first, items, name_of, parsed, text, tool_specs
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, Part, Reasoning, Text

NAME: Final = "vercel"
MARKS: Final = ("ai.",)
_METADATA = "ai.telemetry.metadata."
_SETTINGS = "ai.settings."
_SPELLED = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "maxTokens": "max_tokens",
    "maxOutputTokens": "max_tokens",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "seed": "seed",
}
_THREADS = (
    "threadId",
    "thread_id",
    "conversationId",
    "conversation_id",
    "chatId",
    "chat_id",
    "sessionId",
    "session_id",
)
_AGENTS = ("generateText", "streamText", "generateObject", "streamObject")


def read(span: SpanRecord) -> Reading | Unread | None:
    """The span by its operation (`ai.operationId`). None where it has none of the AI SDK's."""
    given = span.attributes
    operation = text(given.get("ai.operationId"))
    if operation is None or not operation.startswith("ai."):
        return None
    name, _, inner = operation.removeprefix("ai.").partition(".")
    if name == "toolCall":
        return _tool(span)
    if name in _AGENTS:
        return _chat(span) if inner in ("doGenerate", "doStream") else _agent(span)
    return Unread(f"the operation {operation[:40]!r} is no part of a dialogue")


def _agent(span: SpanRecord) -> AgentReading:
    given = span.attributes
    asked = parsed(given.get("ai.prompt"))
    prompt: list[Message] = []
    if isinstance(asked, Mapping):
        if system := text(asked.get("system")):
            prompt.append(Message.of("system", system))
        if asked.get("messages") is not None:
            prompt += read_messages(asked["messages"])
        elif asked.get("prompt") is not None:
            prompt += read_messages(asked["prompt"])
    named = text(given.get("ai.telemetry.functionId"))
    answer = _answer(given)
    return AgentReading(
        name=named or span.name,
        named=named is not None,
        input=tuple(prompt),
        output=() if answer is None else (answer,),
        facts=_facts(given),
    )


def _chat(span: SpanRecord) -> ChatReading:
    given = span.attributes
    sampling = {
        **{
            _SPELLED[name.removeprefix(_SETTINGS)]: value
            for name, value in given.items()
            if name.removeprefix(_SETTINGS) in _SPELLED and name.startswith(_SETTINGS)
        },
        **genai.read_sampling(given),
    }
    return ChatReading(
        input=tuple(read_messages(given.get("ai.prompt.messages"))),
        output=_answer(given),
        model=text(first(given, semconv.RESPONSE_MODEL, "ai.response.model", "ai.model.id")),
        tools=tool_specs(items(given.get("ai.prompt.tools"))),
        sampling=sampling,
        usage=counted(
            input_tokens=first(given, "ai.usage.inputTokens", "ai.usage.promptTokens", semconv.INPUT_TOKENS),
            output_tokens=first(given, "ai.usage.outputTokens", "ai.usage.completionTokens", semconv.OUTPUT_TOKENS),
            cache_read=first(given, "ai.usage.cachedInputTokens"),
            reasoning=first(given, "ai.usage.reasoningTokens"),
        ),
        finish_reason=text(given.get("ai.response.finishReason")),
        facts=_facts(given),
    )


def _answer(given: Mapping[str, JSON]) -> Message | None:
    """The answer: reasoning, text or object, and tool calls."""
    parts: list[Part] = []
    if thinking := text(given.get("ai.response.reasoning")):
        parts.append(Reasoning(content=thinking))
    if said := text(given.get("ai.response.text")) or text(given.get("ai.response.object")):
        parts.append(Text(content=said))
    parts += [read_call(call) for call in items(given.get("ai.response.toolCalls"))]
    if not parts and "ai.response.text" not in given:
        return None
    return Message(role="assistant", parts=tuple(parts), finish_reason=text(given.get("ai.response.finishReason")))


def _tool(span: SpanRecord) -> ToolReading:
    given = span.attributes
    return ToolReading(
        name=text(given.get("ai.toolCall.name")) or "tool",
        call_id=name_of(given.get("ai.toolCall.id")),
        arguments=parsed(given.get("ai.toolCall.args")),
        result=parsed(given.get("ai.toolCall.result")),
        facts=_facts(given),
    )


def _facts(given: Mapping[str, JSON]) -> Facts:
    own = {name.removeprefix(_METADATA): value for name, value in given.items() if name.startswith(_METADATA)}
    tags = own.get("tags")
    return Facts(
        thread=name_of(first(own, *_THREADS)),
        user=name_of(first(own, "userId", "user_id")),
        session=name_of(first(own, "sessionId", "session_id")),
        tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        attributes={name: value for name, value in own.items() if not name.startswith("cm2.")},
    )


__all__ = ["MARKS", "NAME", "read"]
