"""Spans in: the span processor that gathers what our handler wrote, and hands over a Run when a root span has ended.

Apart from `tracing`, which writes the spans. In process a span brings its messages and token ids along as a record
beside it, found by (trace id, span id). `capture` joins the two; it is what `watch` and the runner use."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

from langchain_core.callbacks import BaseCallbackHandler
from opentelemetry import trace as otel
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from cm2_agent.incidents import Incidents
from cm2_agent.tracing import semconv
from cm2_agent.tracing.handler import SpanHandler
from cm2_agent.tracing.run_builder import assemble
from cm2_agent.tracing.span_attributes import decode_ids, decode_logprobs, encode_ids, encode_logprobs
from cm2_agent.tracing.span_records import Key, Record, Source
from cm2_agent.types.trace import Run

__all__ = ["Recorder", "capture", "content_allowed", "decode_ids", "decode_logprobs", "encode_ids", "encode_logprobs"]

_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


class Recorder(SpanProcessor):
    """Finds the record beside each ended span and files it with its root. Spans that are not ours cost one lookup.

    One recorder serves a provider whatever the number of handlers, since a processor cannot be taken off again.
    """

    def __init__(self) -> None:
        self.beside: dict[Key, Record] = {}

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        record = self.beside.pop((context.trace_id, context.span_id), None) if context is not None else None
        if record is not None:
            record.root.source.done(record, span.start_time or record.started, span.end_time or record.started)


class _Ids(IdGenerator):
    """Ids from the operating system: the SDK's own draw from `random`, which an application may seed, and would then
    repeat."""

    def generate_span_id(self) -> int:
        return int.from_bytes(os.urandom(8)) or 1

    def generate_trace_id(self) -> int:
        return int.from_bytes(os.urandom(16)) or 1


_lock = threading.Lock()
_recorders: weakref.WeakKeyDictionary[TracerProvider, Recorder] = weakref.WeakKeyDictionary()


# Where the application has no provider: nothing is sampled away or cut short, and nothing leaves.
_private = TracerProvider(
    sampler=ALWAYS_ON,
    resource=Resource({}),
    shutdown_on_exit=False,
    id_generator=_Ids(),
    span_limits=SpanLimits(max_attributes=SpanLimits.UNSET, max_attribute_length=SpanLimits.UNSET),
)


def _recorder(provider: TracerProvider) -> Recorder:
    with _lock:
        recorder = _recorders.get(provider)
        if recorder is None:
            recorder = _recorders[provider] = Recorder()
            provider.add_span_processor(recorder)
        return recorder


def capture(
    on_run: Callable[[Run], None],
    provider: TracerProvider | None = None,
    *,
    content: bool | None = None,
    tokens: bool = False,
    incidents: Incidents | None = None,
) -> BaseCallbackHandler:
    """A LangChain callback handler that calls `on_run` once for every root run, when it has ended, in the thread where
    it ended.

    The spans go to `provider`; by default to the OpenTelemetry SDK provider that the application has installed (looked
    up at every root, so it may be installed later), whose exporters then see them and whose current span is their
    parent; else to a private one that exports nothing.

    `content`: whether messages, tool arguments and results stand on the spans as JSON. Default: not with the private
    provider (nobody reads them; the Run has them in any case), yes with another, unless the environment variable
    OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT says false, no_content or event_only. `tokens`: say True only
    where the provider exports to another CM2 collector; token ids and logprobs then stand on the chat spans as base64
    (`encode_ids`, `encode_logprobs`). Foreign exporters never get them.

    Known limit, LangChain's own: a model or tool that is invoked inside a node with callbacks of its own in its config
    (`config={"callbacks": [other]}` rather than the node's config passed on) loses the inherited handlers, and is not
    seen.

    A run that a sampler drops is recorded all the same: sampling decides what is exported. An `on_run` that raises is
    counted in `incidents` and logged once; the user's call never sees it."""
    problems = incidents if incidents is not None else Incidents()
    sources: weakref.WeakKeyDictionary[TracerProvider, Source] = weakref.WeakKeyDictionary()

    def done(record: Record, started: int, ended: int) -> None:
        record.started, record.ended = started, ended
        root = record.root
        if record is not root:
            root.records.append(record)
            return
        try:
            on_run(assemble(root))
        except Exception as error:
            problems.add(f"a finished run was lost: {type(error).__name__}", error)
        finally:
            root.records.clear()

    def source() -> Source:
        chosen = provider
        if chosen is None:
            installed = otel.get_tracer_provider()
            chosen = installed if isinstance(installed, TracerProvider) else _private
        known = sources.get(chosen)
        if known is None:
            foreign = chosen is not _private
            known = Source(
                tracer=chosen.get_tracer("cm2_agent", schema_url=semconv.SCHEMA_URL),
                beside=_recorder(chosen).beside,
                done=done,
                attach=foreign,
                content=content if content is not None else foreign and content_allowed(),
                tokens=tokens,
            )
            sources[chosen] = known
        return known

    return SpanHandler(source, problems)


def content_allowed() -> bool:
    """Whether what was said may leave with the telemetry, by the conventions' environment variable."""
    return os.environ.get(_CONTENT, "").strip().lower() not in ("false", "no_content", "event_only")
