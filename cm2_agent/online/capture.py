"""`capture`: spans that other instrumentations put on a tracer provider become runs, stored and scored as `watch`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider

from cm2_agent.incidents import Incidents
from cm2_agent.online.live_path import LivePath, is_enabled
from cm2_agent.online.store_paths import before_end
from cm2_agent.tracing.span_trees import LogEventProcessor, SpanTreeProcessor
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import Judge, Reward, Sink, Store

if TYPE_CHECKING:
    pass

__all__ = ["SpanCapture", "capture"]


class SpanCapture:
    """What `capture` returns. `dialects` counts the spans that each dialect read, `unread` those that were not
    understood, by the reason.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from cm2_agent import SpanCapture, capture
    >>> captured: SpanCapture = capture(TracerProvider(), store="sqlite:///cm2.db")
    >>> captured.dialects, captured.unread, captured.stop()
    ({}, {}, None)
    """

    def __init__(self, processor: SpanTreeProcessor | None) -> None:
        self._processor = processor

    @property
    def dialects(self) -> dict[str, int]:
        return {} if self._processor is None else dict(self._processor.dialects)

    @property
    def unread(self) -> dict[str, int]:
        return {} if self._processor is None else dict(self._processor.unread)

    def stop(self) -> None:
        """Take no further spans; what has ended is read. A processor cannot be taken off its provider."""
        if self._processor is not None:
            self._processor.read_rest()
            self._processor.enabled = False


def capture(
    tracer_provider: TracerProvider,
    checklist: Checklist | str | PathLike[str] | None = None,
    *,
    logger_provider: LoggerProvider | None = None,
    rewards: Mapping[str, Reward] | Sequence[Reward] | None = None,
    judge: Judge | str | None = None,
    sample: float | None = None,
    budget_usd: float | None = None,
    store: Store | str = "sqlite:///cm2.db",
    sinks: Sequence[Sink] = (),
    enabled: bool | None = None,
    **settings: Any,
) -> SpanCapture:
    """Turn the spans that other instrumentations put on a provider into runs, which are stored and scored as those of
    `watch` are.

    The dialects are OpenTelemetry's conventions for generative AI (the official instrumentations, pydantic-ai),
    OpenInference, traceloop's OpenLLMetry and Vercel's AI SDK. A run is an agent's invocation; model calls outside of
    any agent are a run for each dialogue, which goes on where a prompt holds what was said before. The
    instrumentation has to record content, and the provider's sampler to record the spans. Spans of `watch` and
    `observe` on the same provider are left out: their runs are recorded already.

    Args:
        tracer_provider: the SDK's provider on which the instrumentations are.
        checklist: as for `watch`.
        logger_provider: the provider of their log records, where they write messages as events there.
        rewards: as for `watch`; so are the next five, and `settings` (`redact`, `sample_store`, `project`, `spool`,
            `strict`, `check_timeout`, `capture_content`).
        judge: see there.
        sample: see there.
        budget_usd: see there.
        store: see there.
        sinks: see there.
        enabled: False, or CM2_DISABLED=1 in the environment, captures nothing.
        settings: see there.

    Raises:
        TypeError: a provider that is not the SDK's, or a setting that `watch` does not have.
        ValueError: a provider that is captured already into the same store; and what `watch` raises.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from cm2_agent import SQLStore, capture, flush
    >>> provider = TracerProvider()
    >>> captured = capture(provider, store="sqlite:///cm2.db")
    >>> with provider.get_tracer("app").start_as_current_span("chat desk") as span:
    ...     span.set_attribute("gen_ai.operation.name", "chat")
    ...     span.set_attribute("gen_ai.conversation.id", "t1")
    ...     span.set_attribute("gen_ai.input.messages", '[{"role": "user", "content": "Hello"}]')
    ...     span.set_attribute("gen_ai.output.messages", '[{"role": "assistant", "content": "Hi!"}]')
    >>> flush(), captured.dialects
    (True, {'genai': 1})
    >>> [message.text for message in SQLStore("sqlite:///cm2.db").trace("t1").messages]
    ['Hello', 'Hi!']
    """
    if not isinstance(tracer_provider, TracerProvider):
        raise TypeError(
            f"capture was given a {type(tracer_provider).__name__}; expected the TracerProvider of opentelemetry.sdk on"
            " which the instrumentations are"
        )
    path = LivePath(
        checklist=checklist,
        rewards=rewards,
        judge=judge,
        sample=sample,
        budget_usd=budget_usd,
        store=store,
        sinks=sinks,
        **settings,
    )
    path.check()
    if not is_enabled(enabled):
        return SpanCapture(None)
    on_run, incidents = path.open()
    processor = span_trees(path, on_run, incidents)
    tracer_provider.add_span_processor(processor)
    if logger_provider is not None:
        logger_provider.add_log_record_processor(LogEventProcessor(processor))
    return SpanCapture(processor)


def span_trees(path: LivePath, on_run: Any, incidents: Incidents) -> SpanTreeProcessor:
    """A processor for a live path; what has not ended by the end of the process is read then."""
    processor = SpanTreeProcessor(path.redacted(on_run), incidents)
    before_end.append(processor.read_rest)
    return processor
