"""Spans as bytes: how received ones wait in the store, MessagePack in Zstandard. The prompts of a dialogue repeat in
every span of it, and so compress well."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import ormsgpack
import zstandard

from cm2_agent.dialects.span_record import SpanEvent, SpanRecord

__all__ = ["holds_root", "pack_spans", "unpack_spans"]

_LEVEL = 1
_ZLIB = b"\x78"
"""How a body begins that was stored before revision 0014."""


def pack_spans(spans: Sequence[SpanRecord], *, rooted: bool = False) -> bytes:
    """The spans as bytes, and whether the root of their trace is among them."""
    return zstandard.compress(ormsgpack.packb([rooted, [_row(span) for span in spans]]), _LEVEL)


def unpack_spans(body: bytes) -> list[SpanRecord]:
    """The spans that `pack_spans` was given."""
    return [_span(row) for row in _unpacked(body)[1]]


def holds_root(body: bytes) -> bool:
    """Whether the root is among the spans."""
    return bool(_unpacked(body)[0])


def _unpacked(body: bytes) -> Any:
    return ormsgpack.unpackb(zlib.decompress(body) if body.startswith(_ZLIB) else zstandard.decompress(body))


def _row(span: SpanRecord) -> tuple[Any, ...]:
    return (
        *(span.trace_id, span.span_id, span.parent_id, span.name, span.kind, span.start, span.end),
        span.attributes,
        [(event.name, event.time, event.attributes) for event in span.events],
        *(span.status, span.status_message, span.resource, span.scope, span.scope_version),
    )


def _span(row: Sequence[Any]) -> SpanRecord:
    trace, own, parent, name, kind, start, end, attributes, events, status, message, resource, scope, version = row
    return SpanRecord(
        trace_id=trace,
        span_id=own,
        parent_id=parent,
        name=name,
        kind=kind,
        start=start,
        end=end,
        attributes=attributes,
        events=tuple(SpanEvent(name=one[0], time=one[1], attributes=one[2]) for one in events),
        status=status,
        status_message=message,
        resource=resource,
        scope=scope,
        scope_version=version,
    )
