"""The spans of what `observe` wraps: which run a call is part of, and what is written of it.

They are kept out of OpenTelemetry's context: the application's own spans should not hang from spans that its backend
never sees."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from cm2_agent.dialects import semconv
from cm2_agent.incidents import Incidents
from cm2_agent.langchain_messages import plain
from cm2_agent.tracing.span_trees import SpanTreeProcessor
from cm2_agent.types.run import Run

__all__ = ["Observed", "Source", "current", "entered", "write"]


class Source:
    """Where spans are made and their runs go; opened when the first one begins."""

    def __init__(self, opened: Callable[[], tuple[Callable[[Run], None], Incidents]]) -> None:
        self._opened = opened
        self._tracer: Any = None
        self.incidents: Incidents | None = None

    @property
    def tracer(self) -> Any:
        if self._tracer is None:
            on_run, self.incidents = self._opened()
            provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
            provider.add_span_processor(SpanTreeProcessor(on_run, self.incidents))
            self._tracer = provider.get_tracer("cm2_agent.observe")
        return self._tracer


@dataclass(eq=False)
class Observed:
    """A span that has begun. `asked` are the calls that the models of its run asked for and no tool has answered."""

    span: Span
    source: Source
    kind: str
    asked: list[tuple[str | None, str, Any]] = field(default_factory=list)

    @classmethod
    def begin(
        cls, source: Source, above: Observed | None, kind: str, name: str, attributes: Mapping[str, Any]
    ) -> Observed:
        within = Context() if above is None else set_span_in_context(above.span, Context())
        tracer = source.tracer if above is None else above.source.tracer
        span = tracer.start_span(name, within, attributes={semconv.OPERATION: kind, **attributes})
        asked = [] if above is None else above.asked
        return cls(span, source if above is None else above.source, kind, asked)

    def end(self, error: BaseException | None = None) -> None:
        if error is not None:
            self.span.record_exception(error)
            self.span.set_attribute(semconv.ERROR_TYPE, type(error).__name__)
            self.span.set_status(Status(StatusCode.ERROR, str(error)))
        self.span.end()

    def answering(self, name: str, arguments: Any) -> str | None:
        """The id of the call that this execution answers: the same name and arguments, or the same name."""
        found = [one for one in self.asked if one[1] == name]
        exact = [one for one in found if one[2] == arguments]
        chosen = next(iter(exact or found), None)
        if chosen is None:
            return None
        self.asked.remove(chosen)
        return chosen[0]


_current: ContextVar[Observed | None] = ContextVar("cm2_observed", default=None)


def current() -> Observed | None:
    """The span within which the code here runs."""
    return _current.get()


@contextlib.contextmanager
def entered(observed: Observed) -> Iterator[None]:
    """Make it the current one, while the block runs."""
    token = _current.set(observed)
    try:
        yield
    finally:
        _current.reset(token)


def write(span: Span, **attributes: Any) -> None:
    """Attributes as the conventions' dialect reads them: structures as JSON, absent values left out."""
    for name, value in attributes.items():
        if value is not None and value != {} and value != []:
            text = (
                value if isinstance(value, str | int | float | bool) else json.dumps(plain(value), ensure_ascii=False)
            )
            span.set_attribute(name, text)
