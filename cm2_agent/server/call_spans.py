"""A proxied call as spans, one for each completion, so that it goes the way of received ones."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cm2_agent.dialects import semconv
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.token_text import encode_ids, encode_logprobs
from cm2_agent.incidents import Incidents
from cm2_agent.server.body import MalformedBody
from cm2_agent.server.chat_call import UNREADABLE, Choice, ProxiedCall
from cm2_agent.server.decoded import Decoded
from cm2_agent.server.dialogues import Dialogues

__all__ = ["spans_of"]

_UNREAD = "the server behind the proxy: an answer that is not of the chat API"


def spans_of(call: ProxiedCall, dialogues: Dialogues, incidents: Incidents) -> Decoded:
    """The spans of a call, in the trace of the turn that it is part of. An answer of no kind that the API has makes a
    failed call: it may not cost the calls stored with it. Raises MalformedBody where the request is of none."""
    try:
        return _spans_of(call, dialogues)
    except UNREADABLE as error:
        incidents.add("an answer that passed the proxy is not of the chat API", error)
    try:
        return _spans_of(replace(call, raw=b"", failure=_UNREAD), dialogues)
    except UNREADABLE as error:
        raise MalformedBody("the request is not of the chat API") from error


def _spans_of(call: ProxiedCall, dialogues: Dialogues) -> Decoded:
    choices = call.choices()
    trace = dialogues.trace_of(call.project, call.thread, call.messages, [choice.message for choice in choices])
    found = Decoded()
    each: list[Choice | None] = [*choices] or [None]
    for choice in each:
        found.add(
            SpanRecord(
                trace_id=trace,
                span_id=secrets.token_hex(8),
                name=f"chat {call.model or ''}".strip(),
                kind="client",
                start=call.started,
                end=call.ended,
                attributes=_attributes(call, choice),
                status="unset" if call.error is None else "error",
                status_message=call.error,
                scope="cm2-agent.proxy",
            ),
            0,
        )
    return found


def _attributes(call: ProxiedCall, choice: Choice | None) -> dict[str, Any]:
    given = call.asked.given
    usage = call.usage
    details: Mapping[str, Any] = usage.get("prompt_tokens_details") or {}
    wrote: Mapping[str, Any] = usage.get("completion_tokens_details") or {}
    found = {
        semconv.OPERATION: semconv.CHAT,
        semconv.CONVERSATION: call.thread,
        semconv.REQUEST_MODEL: given.get("model"),
        semconv.RESPONSE_MODEL: call.model,
        semconv.INPUT_MESSAGES: call.messages,
        semconv.TOOL_DEFINITIONS: given.get("tools"),
        semconv.INPUT_TOKENS: usage.get("prompt_tokens"),
        semconv.OUTPUT_TOKENS: usage.get("completion_tokens"),
        "gen_ai.usage.cache_read.input_tokens": details.get("cached_tokens") or None,
        "gen_ai.usage.reasoning.output_tokens": wrote.get("reasoning_tokens") or None,
        "user.id": given.get("user"),
        "metadata": given.get("metadata"),
    }
    sampling = dict(call.asked.sampling)
    if choice is not None:
        known = choice.metadata
        if known.get("untrainable"):
            sampling["untrainable"] = known["untrainable"]
        if call.error is None:
            found[semconv.OUTPUT_MESSAGES] = [{**choice.message, "finish_reason": choice.finish_reason}]
            found[semconv.FINISH_REASONS] = [choice.finish_reason] if choice.finish_reason else None
        found[semconv.MODEL_VERSION] = known["model_version"]
        if known.get("prompt_ids") is not None:
            found[semconv.PROMPT_IDS] = encode_ids(known["prompt_ids"])
        if known.get("completion_ids") is not None:
            found[semconv.COMPLETION_IDS] = encode_ids(known["completion_ids"])
            found[semconv.LOGPROBS] = encode_logprobs(known["logprobs"])
    found[semconv.SAMPLING] = sampling
    return {name: value for name, value in found.items() if value is not None}
