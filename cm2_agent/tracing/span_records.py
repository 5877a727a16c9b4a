"""The record that travels beside each span inside the process: its messages as objects and its token ids.

The handler writes records and the span processor reads them; span attributes carry the same content as text, and only
where somebody outside reads the spans."""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer

from cm2_agent.dialects.seen_message import SeenMessage
from cm2_agent.tracing.agents import NOWHERE, Place
from cm2_agent.tracing.graph_values import GraphValue, Selector
from cm2_agent.tracing.llm_results import ResponseMetadata
from cm2_agent.tracing.message_index import MessageIndex
from cm2_agent.tracing.private_tracer import PrivateSpan, PrivateTracer
from cm2_agent.tracing.span_attributes import is_cancel
from cm2_agent.tracing.state_log import NodeTask, StateLog
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec

if TYPE_CHECKING:
    from cm2_agent.redaction.redactor import Redactor

Key = tuple[int, int]
"""(trace id, span id)."""


@dataclass(slots=True, eq=False)
class Record:
    """One span and what goes beside it. `key` is the span's, or fresh ids where a sampler dropped the span. `started`
    and `ended` are nanoseconds since 1970; `error` is the text of `raised`, the exception that ended the span; `token`
    is what OpenTelemetry's context is reset with."""

    kind: Literal["agent", "chat", "tool"]
    run_id: UUID
    name: str
    parent: Record | None
    span: Span
    key: Key
    context: Context
    started: int
    ended: int = 0
    done: bool = False
    in_tool: bool = False
    attempt: str | None = None
    place: Place = NOWHERE
    error: str | None = None
    raised: BaseException | None = None
    token: Any = None

    @property
    def root(self) -> RootRecord:
        """The root's record, itself for a root."""
        raise NotImplementedError

    @property
    def span_id(self) -> str:
        return f"{self.key[1]:016x}"


@dataclass(slots=True, eq=False)
class LeafRecord(Record):
    """A model or tool call."""

    root: RootRecord = field(kw_only=True)


@dataclass(slots=True, eq=False)
class ChatRecord(LeafRecord):
    """A model call. `task` is the node's that made it; `internal` says that LangChain's middleware asked for itself."""

    input: Sequence[SeenMessage] = ()
    output: SeenMessage | None = None
    model: str | None = None
    settings: dict[str, JSON] = field(default_factory=dict)
    tools: tuple[ToolSpec, ...] = ()
    response: ResponseMetadata | None = None
    task: NodeTask | None = None
    internal: bool = False


@dataclass(slots=True, eq=False)
class ToolRecord(LeafRecord):
    """An execution of a tool. `interrupted`: it stopped to ask a human and answered nothing; `handoff`: it sent the
    parent graph elsewhere."""

    call_id: str | None = None
    arguments: JSON = None
    result: JSON = None
    artifact: JSON = None
    backend: str | None = None
    fault: str | None = None
    interrupted: bool = False
    handoff: bool = False


@dataclass(slots=True, eq=False)
class RootRecord(Record):
    """A root: one invocation of a graph. `inputs` is its input, `input_messages` and `final_messages` are the messages
    of its input and of its final state, where there are any; `log` says what its nodes did with them in between.
    `open` holds the records of spans that have not ended, `records` those that
    have. `pid` is the process that began it."""

    source: Source = field(kw_only=True)
    message_index: MessageIndex = field(default_factory=MessageIndex)
    thread: str | None = None
    facts: dict[str, JSON] = field(default_factory=dict)
    input_messages: list[SeenMessage] | None = None
    final_messages: list[SeenMessage] | None = None
    inputs: Any = None
    input: GraphValue | None = None
    output: GraphValue | None = None
    log: StateLog = field(default_factory=StateLog)
    resumed: bool = False
    interrupted: bool = False
    interrupts: list[Any] = field(default_factory=list)
    run_ids: list[UUID] = field(default_factory=list)
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    asked_config: bool = False
    pid: int = field(default_factory=os.getpid)
    open: dict[UUID, Record] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    @property
    def root(self) -> RootRecord:
        return self  # and holds itself nowhere: what it holds goes with it, without the cyclic garbage collector

    def forget(self) -> None:
        """Let go of what refers to each other, once the run is built."""
        self.records.clear()
        self.log.forget()

    @property
    def is_update(self) -> bool:
        """Whether somebody wrote into a checkpoint (`update_state`): no run, and LangGraph shows it only where the
        node that the write is ascribed to has conditional edges."""
        return self.name.endswith("UpdateState") and not self.log.graphs and not self.records

    @property
    def status(self) -> Literal["ok", "error", "interrupted", "cancelled"]:
        """How the root ended: a run that was closed or cancelled from outside did not fail."""
        if self.raised is not None:
            return "cancelled" if is_cancel(self.raised) else "error"
        return "interrupted" if self.interrupted else "ok"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a root's spans are made, and who receives the records. `by_key` is where the span processor looks a record
    up; `on_end` is called by it with the record of every ended span and the times of its start and end (by the handler
    itself where a sampler dropped the span). `foreign`: the provider is the application's; the spans of models and
    tools become current, so that the application's own spans nest in them. `content` and `tokens`: whether message
    content (all that user, agent and tools wrote, the caller's metadata, and the text of exceptions, which may quote
    either) and token ids stand on the spans; `redactor` replaces personal data in that content. `input` and `output`
    say where the user's message and the reply stand in a graph's input and output."""

    tracer: Tracer | PrivateTracer
    by_key: MutableMapping[Key, Record]
    on_end: Callable[[Record, int, int], None]
    foreign: bool
    content: bool
    tokens: bool
    redactor: Redactor | None = None
    input: Selector | None = None
    output: Selector | None = None


def key_of(span: Span) -> Key:
    """The span's own ids; fresh ones for a dropped span, whose context may be its parent's."""
    context = span.get_span_context()
    if span.is_recording() or isinstance(span, PrivateSpan):
        return context.trace_id, context.span_id
    trace = context.trace_id or int.from_bytes(os.urandom(16))
    return trace, int.from_bytes(os.urandom(8))
