"""Spans of OpenTelemetry's SDK in this process as the neutral record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from cm2_agent.dialects.span_record import SpanEvent, SpanRecord
from cm2_agent.types.json_values import JSON


def span_record(span: ReadableSpan) -> SpanRecord | None:
    """The ended span; None for one without ids."""
    context = span.context
    if context is None:
        return None
    parent = span.parent
    scope = span.instrumentation_scope
    return SpanRecord(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=None if parent is None else f"{parent.span_id:016x}",
        name=span.name,
        kind=span.kind.name.lower(),
        start=span.start_time or 0,
        end=span.end_time or span.start_time or 0,
        attributes=_values(span.attributes),
        events=tuple(
            SpanEvent(name=one.name, time=one.timestamp, attributes=_values(one.attributes)) for one in span.events
        ),
        status="error"
        if span.status.status_code is StatusCode.ERROR
        else "ok"
        if span.status.status_code is StatusCode.OK
        else "unset",
        status_message=span.status.description,
        resource=_values(span.resource.attributes),
        scope="" if scope is None else scope.name,
        scope_version=None if scope is None else scope.version,
    )


def _values(attributes: Mapping[str, Any] | None) -> dict[str, JSON]:
    return {name: plain_value(value) for name, value in (attributes or {}).items()}


def plain_value(value: Any) -> JSON:
    """An attribute's value as JSON: sequences are lists, bytes are text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value


__all__ = ["plain_value", "span_record"]
