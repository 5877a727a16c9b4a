"""The span processor that gathers the records of ended spans and hands over a Run when a root span has ended.

`capture` joins it to the handler that writes the spans; `watch` and the runner use it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from langchain_core.callbacks import BaseCallbackHandler
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from cm2_agent.dialects import semconv
from cm2_agent.incidents import Incidents
from cm2_agent.tracing.graph_values import Selector, check_selectors
from cm2_agent.tracing.handler import SpanHandler
from cm2_agent.tracing.private_tracer import PrivateTracer
from cm2_agent.tracing.run_builder import build_run
from cm2_agent.tracing.span_records import Key, Record, Source
from cm2_agent.types.run import Run

if TYPE_CHECKING:
    from cm2_agent.redaction.redactor import Redactor

__all__ = ["RunSpanProcessor", "capture", "content_allowed"]

_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_ALLOWS = {
    "spans": ("true", "span_only", "span_and_event"),
    "events": ("true", "event_only", "span_and_event"),
}


class RunSpanProcessor(SpanProcessor):
    """Finds the record beside each ended span and hands it to its root's source. Spans that are not ours cost one
    lookup.

    One processor serves a provider whatever the number of handlers, since a processor cannot be taken off again.
    """

    def __init__(self) -> None:
        self.by_key: dict[Key, Record] = {}

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        record = self.by_key.pop((context.trace_id, context.span_id), None) if context is not None else None
        if record is not None:
            record.root.source.on_end(record, span.start_time or record.started, span.end_time or record.started)


_lock = threading.Lock()
_processors: weakref.WeakKeyDictionary[TracerProvider, RunSpanProcessor] = weakref.WeakKeyDictionary()


def _processor(provider: TracerProvider) -> RunSpanProcessor:
    with _lock:
        processor = _processors.get(provider)
        if processor is None:
            processor = _processors[provider] = RunSpanProcessor()
            provider.add_span_processor(processor)
        return processor


def capture(
    on_run: Callable[[Run], None],
    provider: TracerProvider | None = None,
    *,
    capture_content: bool | None = None,
    redactor: Redactor | None = None,
    tokens: bool = False,
    incidents: Incidents | None = None,
    input: Selector | None = None,
    output: Selector | None = None,
) -> BaseCallbackHandler:
    """A LangChain callback handler that calls `on_run` once for every root run, when it has ended, in the thread where
    it ended.

    A run that a sampler drops is recorded all the same: sampling decides what is exported. An `on_run` that raises is
    counted in `incidents` and logged once; the user's call never sees it.

    Known limit, LangChain's own: a model or tool that is invoked inside a node with callbacks of its own in its config
    (`config={"callbacks": [other]}` rather than the node's config passed on) loses the inherited handlers, and is not
    seen.

    Args:
        on_run: receives the Run of each root: its messages, model calls, tool executions and status.
        provider: where the spans go. Default: the OpenTelemetry SDK provider that the application has installed (looked
            up at every root, so it may be installed later), whose exporters then see them and whose current span is
            their parent; without one, spans have ids and nothing else.
        capture_content: whether the application's spans get the content: messages, tool definitions, arguments and
            results, the caller's metadata, the text of errors. Default: only where the environment variable
            OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is `span_only`, `span_and_event` or `true`. Names,
            times, settings, token counts and the types of errors stand there in any case; the Run always has all.
        redactor: replaces personal data in the content that goes onto the spans, and in the Run. A run that it fails on
            is counted in `incidents` and goes nowhere.
        tokens: whether token ids and logprobs stand on the chat spans as base64 (`encode_ids`, `encode_logprobs`). Say
            True only where the provider exports to another CM2 collector; other exporters should never get them.
        incidents: counts what fails in capture itself. Default: a counter of its own.
        input: where the user's message stands in the graph's input: a key, a dotted path, or a function of the input.
            Default: the graph's messages; without any, see "Graphs without messages" in docs/method.md.
        output: where the reply stands in the graph's output, likewise.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> from cm2_agent.tracing.span_processor import capture
    >>> runs = []
    >>> model = FakeListChatModel(responses=["Paris."])
    >>> message = model.invoke("The capital of France?", {"callbacks": [capture(runs.append)]})
    >>> [(message.role, message.text) for message in runs[0].messages]
    [('user', 'The capital of France?'), ('assistant', 'Paris.')]
    """
    check_selectors(input, output)
    problems = incidents if incidents is not None else Incidents()
    sources: weakref.WeakKeyDictionary[TracerProvider, Source] = weakref.WeakKeyDictionary()

    def on_end(record: Record, started: int, ended: int) -> None:
        record.started, record.ended = started, ended
        root = record.root
        if record is not root:
            root.records.append(record)
            return
        if root.is_update:
            return
        try:
            run = build_run(root)
            if redactor is not None:
                from cm2_agent.redaction.redacted_run import redacted_run

                run = redacted_run(run, redactor)
            on_run(run)
        except Exception as error:
            problems.add(f"a finished run was lost: {type(error).__name__}", error)
        finally:
            root.forget()

    def made(chosen: TracerProvider | None) -> Source:
        foreign = chosen is not None
        return Source(
            tracer=PrivateTracer() if chosen is None else chosen.get_tracer("cm2_agent", schema_url=semconv.SCHEMA_URL),
            by_key={} if chosen is None else _processor(chosen).by_key,
            on_end=on_end,
            foreign=foreign,
            content=foreign and (content_allowed("spans") if capture_content is None else capture_content),
            tokens=tokens,
            redactor=redactor,
            input=input,
            output=output,
        )

    nobody = made(None)

    def source() -> Source:
        chosen = provider or otel.get_tracer_provider()
        if not isinstance(chosen, TracerProvider):
            return nobody
        found = sources.get(chosen)
        if found is None:
            found = sources[chosen] = made(chosen)
        return found

    return SpanHandler(source, problems)


def content_allowed(on: Literal["spans", "events"]) -> bool:
    """Whether the conventions' environment variable lets message content leave on spans, or on events."""
    return os.environ.get(_CONTENT, "").strip().lower() in _ALLOWS[on]
