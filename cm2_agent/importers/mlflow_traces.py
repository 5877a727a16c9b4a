"""MLflow's traces as JSON: `info` and `data.spans`, with inputs and outputs in attributes.

Source: mlflow.org/docs, "Trace data model" (`Trace.to_json`, `mlflow.search_traces`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cm2_agent.dialects import semconv
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, mapping_of, number_of, text_of
from cm2_agent.importers.spans_to_traces import (
    TraceSpans,
    chat_attributes,
    nanoseconds,
    told_failure,
    tool_attributes,
    unpacked,
)
from cm2_agent.types.json_values import JSON, content_hash

_CALLS = frozenset({"CHAT_MODEL", "LLM"})


def is_mlflow(record: JSON) -> bool:
    """Whether it is a trace of MLflow's."""
    known = mapping_of(record)
    spans = _spans_of(known)
    marked = any("mlflow.spanType" in mapping_of(mapping_of(one).get("attributes")) for one in spans[:20])
    return bool(spans) and (marked or ("info" in known and "data" in known))


def _spans_of(known: Mapping[str, JSON]) -> list[JSON]:
    data = mapping_of(unpacked(known.get("data")))
    spans = unpacked(data.get("spans", known.get("spans")))
    return spans if isinstance(spans, list) else []


def trace_of(record: JSON) -> str:
    """The trace that a record is."""
    known = mapping_of(record)
    info = mapping_of(unpacked(known.get("info")))
    spans = [mapping_of(one) for one in _spans_of(known)]
    own = (mapping_of(spans[0].get("context")).get("trace_id") or spans[0].get("trace_id")) if spans else None
    named = map(text_of, (info.get("trace_id"), info.get("request_id"), known.get("trace_id"), own))
    return next(filter(None, named), None) or content_hash(known.get("data", known.get("spans")))[:32]


def time_of(record: JSON) -> int:
    """When a trace began, in nanoseconds; 0 where it tells no time."""
    known = mapping_of(record)
    times = [_start(mapping_of(one)) for one in _spans_of(known)]
    return min((time for time in times if time), default=0)


def read_mlflow(record: JSON) -> TraceSpans:
    """One trace → its spans and assessments. Raises TraceError."""
    known = mapping_of(record[0] if isinstance(record, list) and record else record)
    info = mapping_of(unpacked(known.get("info")))
    trace_id = trace_of(known)
    metadata = {**mapping_of(info.get("trace_metadata", info.get("request_metadata"))), **_named(info.get("tags"))}
    facts = {
        "user.id": text_of(metadata.get("mlflow.trace.user")),
        "session.id": text_of(metadata.get("mlflow.trace.session")),
        "metadata": {key: value for key, value in metadata.items() if not str(key).startswith("mlflow.")},
    }
    spans = [_span(mapping_of(one), trace_id or "trace", facts) for one in _spans_of(known)]
    outcomes = dict(_outcomes(info.get("assessments", known.get("assessments"))))
    outputs = zip(spans, map(mapping_of, _spans_of(known)), strict=True)
    told = {span.span_id: told_failure(_output(row)) for span, row in outputs}
    failed = {name: one for name, one in told.items() if one is not None}
    return TraceSpans(spans=spans, outcomes=outcomes, failed=failed)


def _named(tags: JSON) -> Mapping[str, JSON]:
    """Tags: an object, or a list of key and value."""
    if isinstance(tags, list):
        return {str(one["key"]): one.get("value") for one in map(mapping_of, tags) if "key" in one}
    return mapping_of(tags)


def _outcomes(assessments: JSON) -> Iterator[tuple[str, float]]:
    found: dict[str, float] = {}
    for one in map(mapping_of, assessments if isinstance(assessments, list) else []):
        name = text_of(one.get("assessment_name", one.get("name")))
        value = mapping_of(one.get("feedback", one.get("expectation"))).get("value")
        if isinstance(value, str) and value in ("yes", "no"):
            value = value == "yes"
        try:
            number = number_of(value, "assessment")
        except TraceError:  # in words
            continue
        if name is not None and number is not None:
            found[name] = number
    if len(found) == 1:
        yield OFFICIAL, next(iter(found.values()))
    yield from found.items()


def _output(row: Mapping[str, JSON]) -> JSON:
    return unpacked(mapping_of(row.get("attributes")).get("mlflow.spanOutputs", row.get("outputs")))


def _start(row: Mapping[str, JSON]) -> int:
    return nanoseconds(row.get("start_time_unix_nano", row.get("start_time", row.get("start_time_ns"))))


def _span(row: Mapping[str, JSON], trace_id: str, facts: Mapping[str, JSON]) -> SpanRecord:
    given = {str(key): unpacked(value) for key, value in mapping_of(row.get("attributes")).items()}
    kind = str(given.get("mlflow.spanType", row.get("span_type", "UNKNOWN"))).strip('"')
    name = text_of(row.get("name")) or kind.lower()
    asked = given.get("mlflow.spanInputs", row.get("inputs"))
    answered = given.get("mlflow.spanOutputs", row.get("outputs"))
    attributes: dict[str, JSON] = dict(facts)
    if kind in _CALLS:
        tools = given.get("mlflow.chat.tools")
        attributes |= chat_attributes(asked, answered, tools=tools, model=mapping_of(asked).get("model"))
    elif kind == "TOOL":
        attributes |= tool_attributes(name, asked, answered)
    elif kind == "AGENT":
        attributes |= {semconv.OPERATION: semconv.INVOKE_AGENT, semconv.AGENT_NAME: name}
    else:
        attributes["gen_ai.step"] = name
    context = mapping_of(row.get("context"))
    status = row.get("status_code", mapping_of(row.get("status")).get("code"))
    failed = "ERROR" in str(status).upper()
    start = _start(row)
    return SpanRecord(
        trace_id=trace_id,
        span_id=text_of(row.get("span_id")) or text_of(context.get("span_id")) or f"{name}-{start}",
        parent_id=text_of(row.get("parent_span_id")) or text_of(row.get("parent_id")),
        name=name,
        start=start,
        end=max(start, nanoseconds(row.get("end_time_unix_nano", row.get("end_time", row.get("end_time_ns"))))),
        attributes={key: value for key, value in attributes.items() if value is not None},
        status="error" if failed else "ok",
        status_message=text_of(mapping_of(row.get("status")).get("message", row.get("status_message"))),
    )


__all__ = ["is_mlflow", "read_mlflow", "time_of", "trace_of"]
