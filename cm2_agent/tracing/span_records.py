"""What goes beside a span in process: its record, with messages as objects and token ids; apart from the handler that
writes and the recorder that reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer

from cm2_agent.tracing import span_attributes as attributes
from cm2_agent.tracing.llm_results import Answer
from cm2_agent.tracing.message_index import Saying, Sayings
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec

Key = tuple[int, int]
"""(trace id, span id)."""


@dataclass(slots=True, eq=False)
class Record:
    """What one span says, with what goes beside it. `key` is that of the span, drawn anew where a sampler dropped
    it."""

    kind: Literal["agent", "chat", "tool"]
    run_id: UUID
    name: str
    root: RootRecord
    parent: Record | None
    span: Span
    key: Key
    context: Context
    started: int
    ended: int = 0
    done: bool = False
    in_tool: bool = False
    attempt: str | None = None
    error: str | None = None
    raised: BaseException | None = None
    token: Any = None

    @property
    def span_id(self) -> str:
        return f"{self.key[1]:016x}"


@dataclass(slots=True, eq=False)
class ChatRecord(Record):
    """A model call."""

    input: list[Saying] = field(default_factory=list)
    output: Saying | None = None
    model: str | None = None
    settings: dict[str, JSON] = field(default_factory=dict)
    tools: tuple[ToolSpec, ...] = ()
    answer: Answer | None = None


@dataclass(slots=True, eq=False)
class ToolRecord(Record):
    """An execution of a tool. `interrupted`: it stopped to ask a human and answered nothing."""

    call_id: str | None = None
    arguments: JSON = None
    result: JSON = None
    backend: str | None = None
    fault: str | None = None
    interrupted: bool = False


@dataclass(slots=True, eq=False)
class RootRecord(Record):
    """A root: one invocation of a graph. `given` and `state` are the messages in its input and in its final state,
    where there are any; `base` those of the state that a resumed run found, as its first node was shown it."""

    source: Source = field(kw_only=True)
    sayings: Sayings = field(default_factory=Sayings)
    thread: str | None = None
    facts: dict[str, JSON] = field(default_factory=dict)
    given: list[Saying] | None = None
    state: list[Saying] | None = None
    base: list[Saying] | None = None
    resumed: bool = False
    interrupted: bool = False
    run_ids: list[UUID] = field(default_factory=list)
    open: dict[UUID, Record] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a root's spans are made, and who is told. `beside` is where the span processor looks up what goes beside a
    span; `done` is called by it with the record of every ended span (by the handler itself where a sampler dropped the
    span). `attach` makes the spans of models and tools current, so that the application's own spans nest in them."""

    tracer: Tracer
    beside: MutableMapping[Key, Record]
    done: Callable[[Record, int, int], None]
    attach: bool
    content: bool
    tokens: bool


def run_status(root: RootRecord) -> Literal["ok", "error", "interrupted", "cancelled"]:
    """How the root ended: a run that was closed or cancelled from outside did not fail."""
    if root.raised is not None:
        return "cancelled" if attributes.is_cancel(root.raised) else "error"
    return "interrupted" if root.interrupted else "ok"


def key_of(span: Span) -> Key:
    """The span's own ids; fresh ones for a dropped span, whose context may be its parent's."""
    context = span.get_span_context()
    if span.is_recording():
        return context.trace_id, context.span_id
    trace = context.trace_id or int.from_bytes(os.urandom(16))
    return trace, int.from_bytes(os.urandom(8))
