"""OTLP's protobuf: export requests into span records, and the answers."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from typing import Any, Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from cm2_agent.dialects.span_record import SpanEvent, SpanRecord
from cm2_agent.server.body import MalformedBody
from cm2_agent.server.claims import OURS, is_taken
from cm2_agent.server.decoded import DEEPEST, NO_SPAN, Decoded, check_ids
from cm2_agent.types.json_values import JSON

__all__ = ["KINDS", "STATUSES", "answer", "decode", "status_bytes"]

KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
"""The kinds of spans by their numbers in OTLP."""
STATUSES: tuple[Literal["unset", "ok", "error"], ...] = ("unset", "ok", "error")
"""The codes of a span's status, likewise."""


def decode(body: bytes) -> Decoded:
    """The spans of an `ExportTraceServiceRequest`. Raises MalformedBody."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise MalformedBody("the body is no ExportTraceServiceRequest in protobuf") from error
    found = Decoded()
    for of_resource in request.resource_spans:
        resource = _attributes(of_resource.resource.attributes, found)
        for of_scope in of_resource.scope_spans:
            scope, version = of_scope.scope.name, of_scope.scope.version or None
            for span in of_scope.spans:
                _add(span, resource, scope, version, found)
    return found


def _add(span: Any, resource: dict[str, JSON], scope: str, version: str | None, found: Decoded) -> None:
    trace, own, parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
    parent = "" if parent == NO_SPAN else parent
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    problem = check_ids(trace, own, parent, start, end)
    if problem is not None:
        found.rejected[problem] += 1
        return
    status = span.status
    found.add(
        SpanRecord(
            trace_id=trace,
            span_id=own,
            parent_id=parent or None,
            name=span.name,
            kind=KINDS[span.kind] if 0 <= span.kind < len(KINDS) else "internal",
            start=start,
            end=end,
            attributes=_attributes(span.attributes, found),
            events=tuple(
                SpanEvent(
                    name=event.name,
                    time=min(event.time_unix_nano, (1 << 63) - 1),
                    attributes=_attributes(event.attributes, found),
                )
                for event in span.events
            ),
            status=STATUSES[status.code] if 0 <= status.code < len(STATUSES) else "unset",
            status_message=status.message or None,
            resource=resource,
            scope=scope,
            scope_version=version,
        ),
        span.flags,
    )


def _attributes(pairs: Iterable[Any], found: Decoded) -> dict[str, JSON]:
    out: dict[str, JSON] = {}
    for pair in pairs:
        name = pair.key
        if name.startswith(OURS) and not is_taken(name):
            found.ignored[name] += 1
            continue
        value = pair.value
        if text := value.string_value:  # most are texts: asking for the kind costs as much again
            out[name] = text
        elif (kind := value.WhichOneof("value")) is not None:
            out[name] = _value(value, kind, 1)
    return out


def _value(value: Any, kind: str | None, depth: int) -> JSON:
    if kind == "string_value" or kind == "bool_value" or kind == "int_value":
        return getattr(value, kind)
    if kind == "double_value":
        return value.double_value if math.isfinite(value.double_value) else None
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode("ascii")
    if kind is None or depth > DEEPEST:
        return None
    if kind == "array_value":
        return [_value(one, one.WhichOneof("value"), depth + 1) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {
            one.key: _value(one.value, one.value.WhichOneof("value"), depth + 1) for one in value.kvlist_value.values
        }
    return None


def answer(found: Decoded) -> bytes:
    """The answer to an export request: with `partial_success` where a span was rejected, or something ignored."""
    response = ExportTraceServiceResponse()
    if found.message:
        response.partial_success.rejected_spans = found.rejected.total()
        response.partial_success.error_message = found.message
    return bytes(response.SerializeToString())


def status_bytes(code: int, message: str) -> bytes:
    """A `google.rpc.Status` with a code and a message, which is what OTLP's errors hold."""
    text = message.encode()[:2000]
    return b"\x08" + _varint(code) + b"\x12" + _varint(len(text)) + text


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
