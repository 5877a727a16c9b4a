"""Log records that belong to spans, as events of these: the conventions' older form writes messages so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cm2_agent.dialects.sdk_spans import plain_value
from cm2_agent.dialects.span_record import SpanEvent, SpanRecord
from cm2_agent.types.json_values import JSON

if TYPE_CHECKING:
    from opentelemetry._logs import LogRecord

_NAME = "event.name"


def log_event(name: str | None, body: JSON, attributes: Mapping[str, JSON], time: int = 0) -> SpanEvent | None:
    """The event that a log record is, its body's keys among the attributes; None for a record without an event's
    name."""
    named = name or attributes.get(_NAME)
    if not isinstance(named, str) or not named:
        return None
    said = dict(body) if isinstance(body, Mapping) else {} if body is None else {"body": body}
    return SpanEvent(name=named, time=time, attributes={**attributes, **said})


def with_log_events(spans: Iterable[SpanRecord], logs: Sequence[LogRecord]) -> list[SpanRecord]:
    """The spans with the events that the SDK's log records say of them, in their order."""
    found: defaultdict[tuple[str, str], list[SpanEvent]] = defaultdict(list)
    for log in logs:
        attributes = {name: plain_value(value) for name, value in (log.attributes or {}).items()}
        event = log_event(
            log.event_name, plain_value(log.body), attributes, log.timestamp or log.observed_timestamp or 0
        )
        if event is not None and log.trace_id and log.span_id:
            found[f"{log.trace_id:032x}", f"{log.span_id:016x}"].append(event)
    return [
        replace(span, events=(*span.events, *events)) if (events := found.get((span.trace_id, span.span_id))) else span
        for span in spans
    ]


__all__ = ["log_event", "with_log_events"]
