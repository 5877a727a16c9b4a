"""Spans as JSON, a row each: Phoenix's exports (OpenInference), and OpenTelemetry's as exporters write them (OTLP's
JSON, the console's, ours).

Source: arize.com/docs/phoenix, "Export data"; opentelemetry.io, "OTLP file exporter"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from cm2_agent.dialects.openinference import KIND
from cm2_agent.dialects.span_record import SpanEvent, SpanRecord
from cm2_agent.importers.chat import mapping_of, text_of
from cm2_agent.importers.spans_to_traces import TraceSpans, nanoseconds, unpacked
from cm2_agent.types.json_values import JSON

_SPREAD = ("llm.", "tool.", "input.", "output.", "openinference.", "session.", "user.", "agent.", "graph.")
"""Attributes that OpenInference spreads over dotted and numbered names."""
_STARTS = ("start_time", "startTimeUnixNano", "start_time_unix_nano", "start")


def is_phoenix(record: JSON) -> bool:
    """Whether it is a span with OpenInference's attributes, as Phoenix exports them."""
    known = mapping_of(record)
    attributes = mapping_of(unpacked(known.get("attributes")))
    names = {str(key).removeprefix("attributes.").split(".")[0] for key in known if str(key).startswith("attributes.")}
    names |= {str(key).split(".")[0] for key in attributes}
    own = names & {"llm", "openinference"} or (isinstance(known.get("span_kind"), str) and "context.trace_id" in known)
    return bool(own) and _trace_id(known) is not None


def is_otel(record: JSON) -> bool:
    """Whether it is a span of OpenTelemetry's, or a batch of them in OTLP's JSON."""
    known = mapping_of(record)
    if isinstance(known.get("resourceSpans", known.get("resource_spans")), list):
        return True
    return "attributes" in known and _trace_id(known) is not None and _span_id(known) is not None


def batches(record: JSON) -> Iterator[tuple[str, JSON]]:
    """The spans of a batch of OTLP's, each with its resource and scope; any other record is a span itself."""
    known = mapping_of(record)
    resources = known.get("resourceSpans", known.get("resource_spans"))
    if not isinstance(resources, list):
        yield "", record
        return
    for resource in map(mapping_of, resources):
        scopes = resource.get("scopeSpans", resource.get("scope_spans"))
        for scope in map(mapping_of, scopes if isinstance(scopes, list) else []):
            spans = scope.get("spans")
            for span in map(mapping_of, spans if isinstance(spans, list) else []):
                more = {"resource": resource.get("resource"), "instrumentation_scope": scope.get("scope")}
                yield f"span {_span_id(span)}", {**more, **span}


def trace_of(record: JSON) -> str | None:
    """The trace that a span belongs to."""
    return _trace_id(mapping_of(record))


def time_of(record: JSON) -> int:
    """When a span began, in nanoseconds; 0 where it tells no time."""
    return nanoseconds(_first(mapping_of(record), *_STARTS))


def read_span_rows(record: JSON) -> TraceSpans:
    """The rows of one trace → its spans. Raises TraceError."""
    rows = record if isinstance(record, list) else [one for _, one in batches(record)]
    tool = "phoenix" if any(map(is_phoenix, rows)) else None
    return TraceSpans(spans=[_span(mapping_of(row)) for row in rows], tool=tool)


def _trace_id(row: Mapping[str, JSON]) -> str | None:
    return _id(row, "trace_id", "traceId")


def _span_id(row: Mapping[str, JSON]) -> str | None:
    return _id(row, "span_id", "spanId")


def _id(row: Mapping[str, JSON], *names: str) -> str | None:
    context = mapping_of(unpacked(row.get("context")))
    for name in names:
        found = text_of(row.get(f"context.{name}")) or text_of(context.get(name)) or text_of(row.get(name))
        if found is not None:
            return found.removeprefix("0x").lower() if found.startswith("0x") else found
    return None


def _span(row: Mapping[str, JSON]) -> SpanRecord:
    attributes = _attributes(row)
    kind = row.get("span_kind")
    if isinstance(kind, str) and kind.upper() not in ("UNKNOWN", "") and "context.trace_id" in row:
        attributes.setdefault(KIND, kind)
    status = mapping_of(row.get("status"))
    code = str(row.get("status_code", status.get("status_code", status.get("code", "")))).upper()
    start = nanoseconds(_first(row, *_STARTS))
    name = text_of(row.get("name")) or ""
    scope = mapping_of(row.get("instrumentation_scope", row.get("scope")))
    return SpanRecord(
        trace_id=_trace_id(row) or "trace",
        span_id=_span_id(row) or f"{name}-{start}",
        parent_id=_parent(row),
        name=name,
        start=start,
        end=max(start, nanoseconds(_first(row, "end_time", "endTimeUnixNano", "end_time_unix_nano", "end"))),
        attributes=attributes,
        events=tuple(_events(unpacked(row.get("events")))),
        status=_status(code),
        status_message=text_of(_first(row, "status_message"))
        or text_of(status.get("message", status.get("description"))),
        resource=_plain(mapping_of(row.get("resource")).get("attributes", row.get("resource"))),
        scope=text_of(scope.get("name")) or (row["scope"] if isinstance(row.get("scope"), str) else ""),
        scope_version=text_of(scope.get("version")),
    )


def _status(code: str) -> Literal["unset", "ok", "error"]:
    if "ERROR" in code or code == "2":
        return "error"
    return "ok" if "OK" in code or code == "1" else "unset"


def _parent(row: Mapping[str, JSON]) -> str | None:
    found = text_of(_first(row, "parent_id", "parentSpanId", "parent_span_id"))
    return found.removeprefix("0x") if found is not None and found.startswith("0x") else found


def _first(row: Mapping[str, JSON], *names: str) -> JSON:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _attributes(row: Mapping[str, JSON]) -> dict[str, JSON]:
    """The span's attributes by their whole names: a row spells them as columns, as an object, or as OTLP does."""
    found = _plain(unpacked(row.get("attributes")))
    found |= {
        str(key).removeprefix("attributes."): value
        for key, value in row.items()
        if str(key).startswith("attributes.") and value is not None
    }
    return dict(_spread(found))


def _spread(values: Mapping[str, JSON], prefix: str = "") -> Iterator[tuple[str, JSON]]:
    """Nested objects as dotted names; within OpenInference's also lists, by their numbers."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        inside = f"{name}.".startswith(_SPREAD)
        nested = inside or f"{name}.".startswith(("gen_ai.", "cm2."))
        if isinstance(value, Mapping) and nested and not name.startswith("gen_ai.tool.call.") and value:
            if name.endswith((".json_schema", ".parameters", ".value", ".arguments", ".metadata")):
                yield name, value
            else:
                yield from _spread(value, f"{name}.")
        elif isinstance(value, list) and inside and value and all(isinstance(one, Mapping) for one in value):
            for number, one in enumerate(value):
                yield from _spread(one, f"{name}.{number}.")
        else:
            yield name, value


def _plain(attributes: JSON) -> dict[str, JSON]:
    """Attributes as an object, also of OTLP's list of key and value."""
    if isinstance(attributes, list):
        return {
            str(one.get("key")): _any_value(one.get("value")) for one in map(mapping_of, attributes) if "key" in one
        }
    return {str(key): value for key, value in mapping_of(attributes).items()}


def _any_value(value: JSON) -> JSON:
    known = mapping_of(value)
    for name, kind in (("stringValue", str), ("boolValue", bool), ("doubleValue", float)):
        if name in known:
            return known[name] if isinstance(known[name], kind | int) else None
    if "intValue" in known:
        number = known["intValue"]
        return int(number) if isinstance(number, int | str) and str(number).lstrip("-").isdecimal() else None
    if "arrayValue" in known:
        values = mapping_of(known["arrayValue"]).get("values")
        return [_any_value(one) for one in values] if isinstance(values, list) else []
    if "kvlistValue" in known:
        return _plain(mapping_of(known["kvlistValue"]).get("values"))
    return value if not known else None


def _events(events: JSON) -> Iterator[SpanEvent]:
    for one in map(mapping_of, events if isinstance(events, list) else []):
        time = nanoseconds(_first(one, "timestamp", "timeUnixNano", "time_unix_nano", "time"))
        yield SpanEvent(name=str(one.get("name", "")), time=time, attributes=_plain(one.get("attributes")))


__all__ = ["batches", "is_otel", "is_phoenix", "read_span_rows", "time_of", "trace_of"]
