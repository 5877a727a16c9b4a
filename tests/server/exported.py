"""Spans as an exporter sends them: traces of one growing dialogue, in OTLP's protobuf and JSON."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from cm2_agent.dialects.token_text import encode_ids, encode_logprobs

BEGAN = 1_700_000_000_000_000_000
WORDS = ("order", "parcel", "refund", "delivery", "customer", "invoice", "payment", "carrier", "label", "window")


def hex_id(name: str, size: int) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[: 2 * size]


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(f"{draw.choice(WORDS)}{draw.randrange(1000)}" for _ in range(words))


def dialogue(
    name: str, *, calls: int = 10, tokens: bool = False, words: int = 30, thread: str | None = None
) -> list[dict[str, Any]]:
    """The spans of one agent that calls a tool in each step but the last: 2 × `calls` of them. Each is `trace`, `span`,
    `parent`, `name`, `start`, `end` and `attributes`."""
    draw = random.Random(name)
    trace, root = hex_id(name, 16), hex_id(f"{name}/root", 8)
    messages: list[dict[str, Any]] = [
        {"role": "system", "parts": [{"type": "text", "content": "You are the desk of a shop. " * 8}]},
        {"role": "user", "parts": [{"type": "text", "content": sentence(draw, words)}]},
    ]
    ids: list[int] = [draw.randrange(50_000) for _ in range(4 * words)]
    tools = [{"type": "function", "name": "look", "description": "Look it up.", "parameters": {"type": "object"}}]
    spans = []
    for number in range(calls):
        at = BEGAN + 2 * number * 1_000_000
        last = number == calls - 1
        call = {"type": "tool_call", "id": f"{name}-{number}", "name": "look", "arguments": {"key": number}}
        part = {"type": "text", "content": sentence(draw, words)} if last else call
        answer = {"role": "assistant", "parts": [part], "finish_reason": "stop" if last else "tool_calls"}
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.model": "policy",
            "gen_ai.response.model": "policy",
            "gen_ai.request.temperature": 1.0,
            "gen_ai.response.finish_reasons": [answer["finish_reason"]],
            "gen_ai.input.messages": json.dumps(messages),
            "gen_ai.output.messages": json.dumps([answer]),
            "gen_ai.tool.definitions": json.dumps(tools),
        }
        if tokens:
            wrote = [draw.randrange(50_000) for _ in range(20)]
            attributes["cm2.prompt_ids"] = encode_ids(ids)
            attributes["cm2.completion_ids"] = encode_ids(wrote)
            attributes["cm2.logprobs"] = encode_logprobs([-draw.random() for _ in wrote])
            attributes["gen_ai.usage.input_tokens"] = len(ids)
            attributes["gen_ai.usage.output_tokens"] = len(wrote)
            ids = [*ids, *wrote, *(draw.randrange(50_000) for _ in range(2 * words))]
        spans.append(span(trace, hex_id(f"{name}/chat{number}", 8), root, "chat policy", at, attributes))
        if not last:
            result = sentence(draw, words)
            spans.append(
                span(
                    trace,
                    hex_id(f"{name}/tool{number}", 8),
                    root,
                    "execute_tool look",
                    at + 1_000_000,
                    {
                        "gen_ai.operation.name": "execute_tool",
                        "gen_ai.tool.name": "look",
                        "gen_ai.tool.call.id": f"{name}-{number}",
                        "gen_ai.tool.call.arguments": json.dumps({"key": number}),
                        "gen_ai.tool.call.result": result,
                    },
                )
            )
            response = {"type": "tool_call_response", "id": f"{name}-{number}", "response": result}
            messages = [*messages, answer, {"role": "tool", "parts": [response]}]
    agent: dict[str, Any] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "desk"}
    if thread is not None:
        agent["gen_ai.conversation.id"] = thread
    top = span(trace, root, None, "invoke_agent desk", BEGAN - 1_000, agent)
    top["end"] = BEGAN + 2 * calls * 1_000_000
    return [*spans, top]


def span(
    trace: str, own: str, parent: str | None, name: str, start: int, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "trace": trace,
        "span": own,
        "parent": parent,
        "name": name,
        "start": start,
        "end": start + 900_000,
        "attributes": dict(attributes),
    }


def protobuf(spans: Iterable[Mapping[str, Any]], resource: Mapping[str, str] | None = None) -> bytes:
    """An ExportTraceServiceRequest; `resource` holds more attributes of the spans' resource."""
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    attributes = {"service.name": "shop", **(resource or {})}
    of_resource.resource.attributes.extend(_pair(name, value) for name, value in attributes.items())
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = "tests"
    for one in spans:
        of_scope.spans.append(
            Span(
                trace_id=bytes.fromhex(one["trace"]),
                span_id=bytes.fromhex(one["span"]),
                parent_span_id=bytes.fromhex(one["parent"] or ""),
                name=one["name"],
                kind=Span.SPAN_KIND_INTERNAL,
                start_time_unix_nano=one["start"],
                end_time_unix_nano=one["end"],
                attributes=[_pair(name, value) for name, value in one["attributes"].items()],
            )
        )
    return request.SerializeToString()


def as_json(spans: Iterable[Mapping[str, Any]]) -> bytes:
    """The same request in OTLP's JSON."""
    scope = {
        "scope": {"name": "tests"},
        "spans": [
            {
                "traceId": one["trace"],
                "spanId": one["span"],
                "parentSpanId": one["parent"] or "",
                "name": one["name"],
                "kind": 1,
                "startTimeUnixNano": str(one["start"]),
                "endTimeUnixNano": str(one["end"]),
                "attributes": [{"key": name, "value": _json_value(value)} for name, value in one["attributes"].items()],
            }
            for one in spans
        ],
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}).encode()


def chunks(spans: Sequence[dict[str, Any]], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(spans), size):
        yield spans[start : start + size]


def _pair(name: str, value: Any) -> KeyValue:
    return KeyValue(key=name, value=_any(value))


def _any(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    made = AnyValue()
    made.array_value.values.extend(_any(one) for one in value)
    return made


def _json_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"arrayValue": {"values": [_json_value(one) for one in value]}}
