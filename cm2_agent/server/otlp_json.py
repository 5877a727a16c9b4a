"""OTLP's JSON: export requests into span records. Ids are hexadecimal there, and long integers may be text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from cm2_agent.dialects.span_record import SpanEvent, SpanRecord
from cm2_agent.server.body import MalformedBody
from cm2_agent.server.claims import OURS, is_taken
from cm2_agent.server.decoded import DEEPEST, NO_SPAN, Decoded, check_ids
from cm2_agent.server.otlp_protobuf import KINDS, STATUSES
from cm2_agent.types.json_values import JSON

__all__ = ["answer", "decode"]

_KIND_NAMES = {f"SPAN_KIND_{name.upper()}": name for name in KINDS} | {"SPAN_KIND_UNSPECIFIED": "internal"}
_STATUS_NAMES = {f"STATUS_CODE_{name.upper()}": name for name in STATUSES}


def decode(body: bytes) -> Decoded:
    """The spans of an export request. Raises MalformedBody."""
    try:
        request = orjson.loads(body)
    except ValueError as error:  # nested too deeply, too
        raise MalformedBody(f"the body is no JSON: {str(error)[:200]}") from error
    found = Decoded()
    for of_resource in _objects(_object(request, "the body"), "resourceSpans"):
        resource = _attributes(_object(of_resource.get("resource") or {}, "resource"), found)
        for of_scope in _objects(of_resource, "scopeSpans"):
            scope = _object(of_scope.get("scope") or {}, "scope")
            name, version = _text(scope, "name"), _text(scope, "version") or None
            for span in _objects(of_scope, "spans"):
                _add(span, resource, name, version, found)
    return found


def _add(span: Mapping[str, Any], resource: dict[str, JSON], scope: str, version: str | None, found: Decoded) -> None:
    trace, own, parent = (_text(span, name).lower() for name in ("traceId", "spanId", "parentSpanId"))
    parent = "" if parent == NO_SPAN else parent
    start, end = _integer(span, "startTimeUnixNano"), _integer(span, "endTimeUnixNano")
    problem = check_ids(trace, own, parent, start, end)
    if problem is not None:
        found.rejected[problem] += 1
        return
    status = _object(span.get("status") or {}, "status")
    found.add(
        SpanRecord(
            trace_id=trace,
            span_id=own,
            parent_id=parent or None,
            name=_text(span, "name"),
            kind=_named(span.get("kind"), KINDS, _KIND_NAMES),
            start=start,
            end=end,
            attributes=_attributes(span, found),
            events=tuple(
                SpanEvent(
                    name=_text(event, "name"),
                    time=max(0, min(_integer(event, "timeUnixNano"), (1 << 63) - 1)),
                    attributes=_attributes(event, found),
                )
                for event in _objects(span, "events")
            ),
            status=_named(status.get("code"), STATUSES, _STATUS_NAMES),  # type: ignore[arg-type]  # one of them
            status_message=_text(status, "message") or None,
            resource=resource,
            scope=scope,
            scope_version=version,
        ),
        _integer(span, "flags"),
    )


def _attributes(holder: Mapping[str, Any], found: Decoded) -> dict[str, JSON]:
    out: dict[str, JSON] = {}
    for pair in _objects(holder, "attributes"):
        name = _text(pair, "key")
        if name.startswith(OURS) and not is_taken(name):
            found.ignored[name] += 1
        elif (value := _value(pair.get("value"), 1)) is not None:
            out[name] = value
    return out


def _value(value: Any, depth: int) -> JSON:
    held = _object(value if value is not None else {}, "an attribute's value")
    for kind in ("stringValue", "bytesValue"):
        if kind in held:
            return _text(held, kind)
    if "boolValue" in held:
        return held["boolValue"] is True or held["boolValue"] == "true"
    if "intValue" in held:
        number = _integer(held, "intValue")
        if not -(1 << 63) <= number < 1 << 63:
            raise MalformedBody("an intValue does not fit 64 bits")
        return number
    if "doubleValue" in held:
        try:
            double = float(held["doubleValue"])
        except (TypeError, ValueError) as error:
            raise MalformedBody("a doubleValue is no number") from error
        return double if math.isfinite(double) else None
    if depth > DEEPEST:
        return None
    if "arrayValue" in held:
        values = _object(held["arrayValue"], "arrayValue").get("values") or []
        return [_value(one, depth + 1) for one in _list(values, "values")]
    if "kvlistValue" in held:
        pairs = _objects(_object(held["kvlistValue"], "kvlistValue"), "values")
        return {_text(pair, "key"): _value(pair.get("value"), depth + 1) for pair in pairs}
    return None


def _named(value: Any, by_number: Sequence[str], by_name: Mapping[str, str]) -> str:
    if isinstance(value, str):
        return by_name.get(value, by_number[0])
    return by_number[value] if isinstance(value, int) and 0 <= value < len(by_number) else by_number[0]


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedBody(f"{what} is {type(value).__name__}; expected an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedBody(f"{what} is {type(value).__name__}; expected a list")
    return value


def _objects(holder: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [_object(one, f"an entry of {name}") for one in _list(holder.get(name) or [], name)]


def _text(holder: Mapping[str, Any], name: str) -> str:
    value = holder.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedBody(f"{name} is {type(value).__name__}; expected text")
    return value


def _integer(holder: Mapping[str, Any], name: str) -> int:
    value = holder.get(name, 0)
    if isinstance(value, str) and len(value) <= 20:
        try:
            return int(value)
        except ValueError:
            pass
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 63:
        return int(value)
    raise MalformedBody(f"{name} is {str(value)[:40]!r}; expected an integer")


def answer(found: Decoded) -> bytes:
    """The answer to an export request: with `partialSuccess` where a span was rejected, or something ignored."""
    if not found.message:
        return b"{}"
    rejected = str(found.rejected.total())
    return orjson.dumps({"partialSuccess": {"rejectedSpans": rejected, "errorMessage": found.message}})
