"""The tracer for an application without an OpenTelemetry provider: spans that have ids, and that nobody reads."""

from __future__ import annotations

import os
import random
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    Span,
    SpanContext,
    TraceFlags,
    get_current_span,
)

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
# A generator of our own: an application may seed that of `random`, and would then repeat the ids.
_ids = random.Random(os.urandom(32))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _ids.seed(os.urandom(32)))


class PrivateSpan(NonRecordingSpan):
    """A span with ids of its own, as valid as an exported one's, so that events may name it."""


NOBODYS = NonRecordingSpan(INVALID_SPAN_CONTEXT)
"""The span of every model and tool call there: its ids are in the call's record alone."""


def new_span_id() -> int:
    return _ids.getrandbits(64) or 1


class PrivateTracer:
    """Makes spans as an OpenTelemetry tracer does: a child has its parent's trace id."""

    def start_span(self, name: str, context: Context | None = None, **ignored: Any) -> Span:
        around = get_current_span(context).get_span_context()
        trace = around.trace_id if around.is_valid else _ids.getrandbits(128) or 1
        return PrivateSpan(SpanContext(trace, new_span_id(), is_remote=False, trace_flags=_SAMPLED))
