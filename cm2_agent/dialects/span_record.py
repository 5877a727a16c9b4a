"""A finished span as any door hands it over: a span processor, an OTLP collector, or a file of exported spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON


@dataclass(frozen=True, kw_only=True)
class SpanEvent:
    """Something that happened within a span: an exception, or a message in the conventions' older form. A log record
    that bears the span's ids may stand here too, its body's keys among the attributes."""

    name: str
    time: int = 0
    attributes: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SpanRecord:
    """One finished span. Attributes are JSON values: an exporter that writes lists and objects as JSON texts and one
    that keeps them as they are, are both read.

    Args:
        trace_id: 32 hexadecimal digits in lower case, or whatever names the trace in a foreign file.
        span_id: 16 hexadecimal digits, likewise.
        parent_id: The parent's span id; None for a root, also where the parent is in another process.
        name: The span's.
        kind: `internal`, `client`, `server`, `producer` or `consumer`.
        start: Nanoseconds since the epoch.
        end: Nanoseconds since the epoch.
        attributes: The span's own.
        events: In the order of their times.
        status: As OpenTelemetry names it.
        status_message: The description of an error.
        resource: The attributes of what produced it (`service.name`).
        scope: The name of the instrumentation.
        scope_version: Its version.

    >>> from cm2_agent.dialects.span_record import SpanRecord
    >>> span = SpanRecord(trace_id="0" * 31 + "1", span_id="0" * 15 + "2", name="chat", start=1, end=2)
    >>> span.parent_id, span.status, span.attributes
    (None, 'unset', {})
    """

    trace_id: str
    span_id: str
    parent_id: str | None = None
    name: str = ""
    kind: str = "internal"
    start: int = 0
    end: int = 0
    attributes: Mapping[str, JSON] = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    status: Literal["unset", "ok", "error"] = "unset"
    status_message: str | None = None
    resource: Mapping[str, JSON] = field(default_factory=dict)
    scope: str = ""
    scope_version: str | None = None

    def to_json(self) -> dict[str, JSON]:
        """The span as one JSON object; `from_json` reads it back."""
        return {
            **{
                name: value for name, value in self.__dict__.items() if name not in ("attributes", "events", "resource")
            },
            "attributes": dict(self.attributes),
            "events": [{"name": one.name, "time": one.time, "attributes": dict(one.attributes)} for one in self.events],
            "resource": dict(self.resource),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> SpanRecord:
        """Raises TraceError for what `to_json` did not write."""
        try:
            known = dict(data)
            return cls(events=tuple([SpanEvent(**event) for event in known.pop("events", ())]), **known)
        except (TypeError, ValueError) as error:
            raise TraceError(f"not a span: {error}; expected the object that SpanRecord.to_json writes") from error


__all__ = ["SpanEvent", "SpanRecord"]
