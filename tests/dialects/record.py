"""Records the spans of a running instrumentation over the order desk's dialogue, as a file of neutral spans:

    python -m tests.dialects.record NAME FILE

It runs in the instrumentation's own environment, with the checkout on its path; `make spans` makes those and records
anew. Ids, times and the server's port are replaced by counted ones, so that two recordings differ only where the
instrumentation does."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cm2_agent.dialects.log_events import with_log_events
from cm2_agent.dialects.sdk_spans import span_record
from cm2_agent.dialects.span_record import SpanRecord
from tests.dialects.order_server import MODEL, SYSTEM, TURNS, get_order, loop, running

_LEFT_OUT = ("exception.stacktrace", "server.port")
_PORT = 8000
_BEGIN = 1_700_000_000_000_000_000


def _of(module: str, name: str) -> Any:
    """What the instrumentation's own environment has, and this project's need not."""
    return getattr(importlib.import_module(module), name)


def client(base_url: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=base_url, api_key="none", max_retries=0)


def conversation(create: Any, **settings: Any) -> None:
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    for turn in range(len(TURNS)):
        loop(create, turn, messages, **settings)


def openai_v2(provider: TracerProvider, base_url: str) -> list[Any]:
    """The official instrumentation, content as attributes of the current conventions."""
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "span_only"
    return _official(provider, base_url)


def openai_v2_events(provider: TracerProvider, base_url: str) -> list[Any]:
    """The official instrumentation of an earlier release: messages as log records of the older form."""
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "true"
    return _official(provider, base_url)


def _official(provider: TracerProvider, base_url: str) -> list[Any]:
    OpenAIInstrumentor: Any = _of("opentelemetry.instrumentation.openai_v2", "OpenAIInstrumentor")
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

    logs, exporter = LoggerProvider(), _of("opentelemetry.sdk._logs.export", "InMemoryLogRecordExporter")()
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    OpenAIInstrumentor().instrument(tracer_provider=provider, logger_provider=logs)
    conversation(client(base_url).chat.completions.create)
    return [data.log_record for data in exporter.get_finished_logs()]


def openai_v2_details(provider: TracerProvider, base_url: str) -> list[Any]:
    """The official instrumentation, content on an event of its own."""
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "event_only"
    return _official(provider, base_url)


def openinference_openai(provider: TracerProvider, base_url: str) -> list[Any]:
    using_attributes: Any = _of("openinference.instrumentation", "using_attributes")
    OpenAIInstrumentor: Any = _of("openinference.instrumentation.openai", "OpenAIInstrumentor")

    OpenAIInstrumentor().instrument(tracer_provider=provider)
    with using_attributes(session_id="session-1", user_id="ada", metadata={"plan": "gold"}, tags=["desk"]):
        conversation(client(base_url).chat.completions.create)
    return []


def openinference_langchain(provider: TracerProvider, base_url: str) -> list[Any]:
    create_agent: Any = _of("langchain.agents", "create_agent")
    tool: Any = _of("langchain_core.tools", "tool")
    ChatOpenAI: Any = _of("langchain_openai", "ChatOpenAI")
    InMemorySaver: Any = _of("langgraph.checkpoint.memory", "InMemorySaver")
    LangChainInstrumentor: Any = _of("openinference.instrumentation.langchain", "LangChainInstrumentor")

    LangChainInstrumentor().instrument(tracer_provider=provider)
    model = ChatOpenAI(model=MODEL, base_url=base_url, api_key="none", max_retries=0, temperature=0.5)
    agent = create_agent(model, [tool(get_order)], system_prompt=SYSTEM, checkpointer=InMemorySaver())
    for turn in TURNS:
        agent.invoke({"messages": [("user", turn)]}, {"configurable": {"thread_id": "thread-1"}})
    return []


def traceloop_openai(provider: TracerProvider, base_url: str) -> list[Any]:
    OpenAIInstrumentor: Any = _of("opentelemetry.instrumentation.openai", "OpenAIInstrumentor")

    os.environ["TRACELOOP_TRACE_CONTENT"] = "true"
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    conversation(client(base_url).chat.completions.create)
    return []


def vercel(provider: TracerProvider, base_url: str) -> list[Any]:
    """Vercel's AI SDK, in Node.js, with the packages of the working directory."""
    script = Path(__file__).with_name("record_vercel.mjs")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spans.json"
        subprocess.run(["node", str(script), base_url, str(file)], check=True)
        _FOREIGN.extend(SpanRecord.from_json(span) for span in json.loads(file.read_text(encoding="utf-8")))
    return []


_FOREIGN: list[SpanRecord] = []
"""Spans that another process, or another provider, has exported."""
RECORDERS: dict[str, Callable[[TracerProvider, str], list[Any]]] = {
    "openai-v2": openai_v2,
    "openai-v2-details": openai_v2_details,
    "openai-v2-events": openai_v2_events,
    "openinference-openai": openinference_openai,
    "openinference-langchain": openinference_langchain,
    "traceloop-openai": traceloop_openai,
    "traceloop-openai-indexed": traceloop_openai,
    "vercel": vercel,
}


def record(name: str) -> list[SpanRecord]:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with running() as server:
        logs = RECORDERS[name](provider, server.base_url)
        port = server.server_port
    found = [span_record(span) for span in exporter.get_finished_spans()]
    return neutral(with_log_events([*_FOREIGN, *(span for span in found if span is not None)], logs), port)


def neutral(spans: list[SpanRecord], port: int) -> list[SpanRecord]:
    """The spans with counted ids and times, and without what belongs to this machine."""
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    names: dict[str, str] = {}
    for span in ordered:
        names.setdefault(span.trace_id, f"{len(names) + 1:032x}")
        names.setdefault(span.span_id, f"{len(names) + 1:016x}")
    times = sorted({time for span in ordered for time in (span.start, span.end, *(one.time for one in span.events))})
    at = {time: _BEGIN + place * 1_000_000 for place, time in enumerate(times)}

    def clean(value: Any) -> Any:
        text = json.dumps(value).replace(f"127.0.0.1:{port}", f"127.0.0.1:{_PORT}")
        for old, new in names.items():
            text = text.replace(old, new)
        return {key: item for key, item in json.loads(text).items() if key not in _LEFT_OUT}

    made: list[SpanRecord] = []
    for span in ordered:
        data = span.to_json()
        made.append(
            SpanRecord.from_json(
                {
                    **data,
                    "trace_id": names[span.trace_id],
                    "span_id": names[span.span_id],
                    "parent_id": None if span.parent_id is None else names.get(span.parent_id, span.parent_id),
                    "start": at[span.start],
                    "end": at[span.end],
                    "attributes": clean(data["attributes"]),
                    "resource": {},
                    "events": [
                        {"name": one.name, "time": at[one.time], "attributes": clean(dict(one.attributes))}
                        for one in span.events
                    ],
                }
            )
        )
    return made


@contextmanager
def _no_telemetry() -> Iterator[None]:
    os.environ.update(LANGSMITH_TRACING="false", OTEL_METRICS_EXPORTER="none", TRACELOOP_TELEMETRY="false")
    yield


def main(name: str, file: str) -> None:
    with _no_telemetry():
        spans = record(name)
    lines = ",\n".join(json.dumps(span.to_json(), ensure_ascii=False) for span in spans)
    Path(file).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{name}: {len(spans)} spans")


if __name__ == "__main__":
    main(*sys.argv[1:])
