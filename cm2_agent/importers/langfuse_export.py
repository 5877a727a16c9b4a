"""Langfuse's exports: observations, a row each, or traces with their observations and scores.

Source: langfuse.com/docs, "Export" and the public API (`/api/public/traces`, `/api/public/observations`); fields in
camel or in snake case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cm2_agent.dialects import semconv
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, mapping_of, number_of, text_of, texts_of
from cm2_agent.importers.spans_to_traces import (
    TraceSpans,
    chat_attributes,
    nanoseconds,
    told_failure,
    tool_attributes,
    unpacked,
)
from cm2_agent.types.json_values import JSON

_KINDS = frozenset(
    ("GENERATION", "SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL")
)
_AGENTS = frozenset({"AGENT"})


def _known(record: JSON) -> Mapping[str, JSON]:
    """The record; of what the interface downloads, a trace beside its observations, the trace with these."""
    known = mapping_of(record)
    trace = known.get("trace")
    if not isinstance(trace, Mapping) or not isinstance(known.get("observations"), list):
        return known
    return {**trace, "scores": trace.get("scores"), **{key: one for key, one in known.items() if key != "trace"}}


def is_langfuse(record: JSON) -> bool:
    """Whether it is an observation, or a trace with its observations."""
    known = _known(record)
    if isinstance(known.get("observations"), list):
        return True
    return _get(known, "traceId", "trace_id") is not None and str(known.get("type")).upper() in _KINDS


def trace_of(record: JSON) -> str | None:
    """The trace that a row belongs to."""
    known = _known(record)
    return text_of(
        known.get("id") if isinstance(known.get("observations"), list) else _get(known, "traceId", "trace_id")
    )


def time_of(record: JSON) -> int:
    """When a row began, in nanoseconds; 0 where it tells no time."""
    return nanoseconds(_get(_known(record), "startTime", "start_time", "timestamp"))


def read_langfuse(record: JSON) -> TraceSpans:
    """The rows of one trace → its spans and scores. Raises TraceError."""
    rows = [_known(row) for row in (record if isinstance(record, list) else [record])]
    spans = [span for row in rows for span in _spans(row)]
    outcomes: dict[str, float] = {}
    for row in rows:
        scores = row.get("scores")
        for score in map(mapping_of, scores if isinstance(scores, list) else []):
            name = text_of(score.get("name"))
            if str(_get(score, "dataType", "data_type")).upper() == "CATEGORICAL" and not _get(
                score, "configId", "config_id"
            ):
                continue  # without a configuration of numbers its value is 0 whatever was chosen
            try:
                value = number_of(score.get("value"), "score")
            except TraceError:  # a category
                continue
            if name is not None and value is not None:
                outcomes[name] = value
    if len(outcomes) == 1:
        outcomes[OFFICIAL] = next(iter(outcomes.values()))
    failed = {name: told for row in rows for name, told in _told(row) if told is not None}
    return TraceSpans(spans=spans, outcomes=outcomes, tool="langfuse", failed=failed)


def _spans(row: Mapping[str, JSON]) -> Iterator[SpanRecord]:
    """The spans of a row. A trace without observations is one call: its input and its output."""
    observations = row.get("observations")
    if not isinstance(observations, list):
        yield _span(row, {})
        return
    facts = _facts(row)
    whole = [mapping_of(one) for one in observations if isinstance(one, Mapping)]
    for one in whole:
        yield _span({"traceId": row.get("id"), **one}, facts)
    if not any(str(one.get("type")).upper() == "GENERATION" for one in whole) and row.get("output") is not None:
        yield _span(
            {**row, "traceId": row.get("id"), "id": "whole", "type": "GENERATION", "startTime": row.get("timestamp")},
            facts,
        )


def _told(row: Mapping[str, JSON]) -> Iterator[tuple[str, bool | None]]:
    """What a row's executions tell of whether they failed, by their ids."""
    observations = row.get("observations")
    for one in map(mapping_of, observations if isinstance(observations, list) else [row]):
        if str(one.get("type")).upper() == "TOOL":
            yield str(one.get("id")), told_failure(one.get("output"))


def _facts(row: Mapping[str, JSON]) -> dict[str, JSON]:
    metadata = unpacked(row.get("metadata"))
    tags = texts_of(row.get("tags"))
    return {
        "user.id": text_of(_get(row, "userId", "user_id")),
        "session.id": text_of(_get(row, "sessionId", "session_id")),
        semconv.CONVERSATION: text_of(mapping_of(metadata).get("thread_id")),  # LangGraph's
        "metadata": {**mapping_of(metadata), **({"tags": list(tags)} if tags else {})},
    }


def _span(row: Mapping[str, JSON], facts: Mapping[str, JSON]) -> SpanRecord:
    kind = str(row.get("type")).upper()
    name = text_of(row.get("name")) or kind.lower()
    asked, answered = row.get("input"), row.get("output")
    failed = str(row.get("level")).upper() == "ERROR"
    attributes: dict[str, JSON] = {key: value for key, value in {**facts, **_facts(row)}.items() if value}
    for key, value in facts.items():
        attributes.setdefault(key, value)
    if kind == "GENERATION":
        asked, tools = _without_tools(asked)
        attributes |= chat_attributes(asked, answered, tools=tools, model=_get(row, "model", "provided_model_name"))
    elif kind == "TOOL":
        attributes |= tool_attributes(name, asked, answered)
    elif kind in _AGENTS:
        attributes |= {semconv.OPERATION: semconv.INVOKE_AGENT, semconv.AGENT_NAME: name}
    else:
        attributes["gen_ai.step"] = name
    start = nanoseconds(_get(row, "startTime", "start_time"))
    return SpanRecord(
        trace_id=str(_get(row, "traceId", "trace_id")),
        span_id=text_of(row.get("id")) or f"{name}-{start}",
        parent_id=text_of(_get(row, "parentObservationId", "parent_observation_id")),
        name=name,
        start=start,
        end=max(start, nanoseconds(_get(row, "endTime", "end_time"))),
        attributes={key: value for key, value in attributes.items() if value is not None},
        status="error" if failed else "ok",
        status_message=text_of(_get(row, "statusMessage", "status_message")) if failed else None,
    )


def _without_tools(asked: JSON) -> tuple[JSON, JSON]:
    """What a model was asked, and the tools that Langfuse's handler of LangChain writes behind it as messages of tools:
    definitions, which answer no call. None where there are none."""
    messages = unpacked(asked)
    if not isinstance(messages, list):
        return asked, None
    tools: list[JSON] = []
    while messages and (tool := _definition(messages[-1])) is not None:
        messages, tools = messages[:-1], [tool, *tools]
    return (messages, tools) if tools else (asked, None)


def _definition(message: JSON) -> JSON:
    known = mapping_of(message)
    tool = mapping_of(unpacked(known.get("content")))
    if known.get("role") != "tool" or known.get("tool_call_id") is not None or tool.get("type") != "function":
        return None
    return tool if isinstance(mapping_of(tool.get("function")).get("name"), str) else None


def _get(row: Mapping[str, JSON], *names: str) -> JSON:
    return next((row[name] for name in names if row.get(name) is not None), None)


__all__ = ["is_langfuse", "read_langfuse", "time_of", "trace_of"]
