"""The spans that are open: which record belongs to which LangChain run, and how a span starts and ends.

Parents come from LangChain's `parent_run_id` alone; where a nested call was given its own callbacks, which drops that
id, from the config that LangChain holds for the enclosing runnable."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables.config import var_child_runnable_config
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from cm2_agent.dialects import semconv
from cm2_agent.tracing.agents import Place
from cm2_agent.tracing.caller import session_of, user_of
from cm2_agent.tracing.message_index import MessageIndex, ThreadMessages
from cm2_agent.tracing.private_tracer import NOBODYS, new_span_id
from cm2_agent.tracing.span_attributes import as_json, caller_facts, error_message, fact_attributes
from cm2_agent.tracing.span_records import ChatRecord, Record, RootRecord, Source, ToolRecord, key_of
from cm2_agent.tracing.state_log import NodeTask
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run import UNFINISHED
from cm2_agent.types.run_attributes import GUARD_ATTEMPT

_REMEMBERED = 4096
"""At least so many run ids of ended roots are remembered, so that what comes after the end is not taken for a new
root."""

_instances: weakref.WeakSet[OpenSpans] = weakref.WeakSet()
_instances_lock = threading.Lock()
_Leaf = TypeVar("_Leaf", ChatRecord, ToolRecord)


class Spot:
    """Where a LangChain run belongs: the record (its own, or that of the run above it which has one), its name and
    place, the node's task that it is part of, and the task that it is itself until that ends."""

    __slots__ = ("name", "own", "place", "record", "root", "task")

    def __init__(self, record: Record, root: RootRecord, name: str, place: Place, task: NodeTask | None = None) -> None:
        self.record, self.root, self.name, self.place, self.task = record, root, name, place, task
        self.own: NodeTask | None = None


class OpenSpans:
    """The open roots of one handler with everything below them, by LangChain's run ids.

    A run that is neither a root nor a model or tool call has no span: its id stands for its parent's record. `source`
    is asked at every root, so that an OpenTelemetry provider set up later is found."""

    def __init__(self, source: Callable[[], Source]) -> None:
        self.source = source
        self.spots: dict[UUID, Spot] = {}
        self._ended, self._ended_before = set[Any](), set[Any]()
        """The numbers of run ids of roots that have ended."""
        self._threads = ThreadMessages()
        self._lock = threading.Lock()
        with _instances_lock:
            _instances.add(self)

    def open_roots(self) -> list[RootRecord]:
        """The roots that have not ended."""
        with self._lock:
            return list({spot.root.run_id: spot.root for spot in list(self.spots.values())}.values())

    def root(self, run_id: UUID | None) -> RootRecord | None:
        """The run's record if the run is itself a root."""
        spot = self.spots.get(run_id) if run_id is not None else None
        record = None if spot is None else spot.record
        return record if isinstance(record, RootRecord) and record.run_id == run_id else None

    def above(self, parent_run_id: UUID | None) -> Spot | None:
        """Where a run with this parent stands; None where it starts a root."""
        if parent_run_id is not None:
            return self.spots.get(parent_run_id)
        around = var_child_runnable_config.get()
        callbacks = around.get("callbacks") if around else None
        if isinstance(callbacks, BaseCallbackManager) and callbacks.parent_run_id is not None:
            found = self.spots.get(callbacks.parent_run_id)
            return None if found is None else self.spots.get(found.record.run_id)
        return None

    def has_ended(self, run_id: UUID | None) -> bool:
        """Whether the run was part of a root that has ended."""
        number = getattr(run_id, "int", run_id)
        return number in self._ended or number in self._ended_before

    def pass_through(
        self, run_id: UUID, above: Spot, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Spot:
        """A run without a span of its own: what it starts hangs from its parent's."""
        root = above.root
        place = above.place.below(above.name, metadata)
        spot = self.spots[run_id] = Spot(above.record, root, name or above.name, place, above.task)
        root.run_ids.append(run_id)
        if not root.asked_config:
            _ask_config(root)
        return spot

    def start_root(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        name: str,
        tags: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
    ) -> RootRecord:
        source = self.source()
        facts = metadata or {}
        # Inside a run that another handler records, the thread is that run's: if this one joined it, the dialogue would
        # be in it twice.
        nested = parent_run_id is not None and _is_recorded(parent_run_id)
        thread = None if nested else facts.get("thread_id")
        start: dict[str, Any] = {semconv.OPERATION: semconv.INVOKE_AGENT, semconv.AGENT_NAME: name}
        if thread is not None:
            shown = str(thread)
            start[semconv.CONVERSATION] = shown if source.redactor is None else source.redactor.redact_id(shown)
        around = otel_context.get_current() if source.foreign else Context()
        started = time.time_ns()
        span = source.tracer.start_span(
            f"{semconv.INVOKE_AGENT} {name}", context=around, attributes=start, start_time=started
        )
        root = RootRecord(
            kind="agent",
            run_id=run_id,
            name=name,
            parent=None,
            span=span,
            key=key_of(span),
            context=set_span_in_context(span, around),
            started=started,
            source=source,
        )
        root.thread = None if thread is None else str(thread)
        root.message_index = MessageIndex(self._threads.of(root.thread))
        root.facts = caller_facts(facts, tags)
        root.user, root.session = user_of(facts), session_of(facts)
        root.tags = tuple(root.facts.get("tags") or ()) if tags else ()
        root.place = Place.of_root(facts)
        if source.foreign:
            span.set_attributes(fact_attributes(_shown(root.facts, source)))
        self._add(root, name, root.place)
        return root

    def start_leaf(
        self,
        cls: type[_Leaf],
        kind: Any,
        run_id: UUID,
        parent_run_id: UUID | None,
        name: str,
        start: Callable[[], Mapping[str, Any]],
        tags: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
    ) -> _Leaf | None:
        """A span for a model or tool call; None where the run has one already or its root has ended. A call outside
        every root (a bare model) gets a root of its own. `start` are the span's first attributes, where somebody reads
        them."""
        if run_id in self.spots:
            return None
        above = self.above(parent_run_id)
        if above is None:
            if self.has_ended(parent_run_id):
                return None
            root = self.start_root(run_id, parent_run_id, name.partition(" ")[2] or name, tags, metadata)
            above = Spot(root, root, root.name, root.place)
        parent, root, source = above.record, above.root, above.root.source
        started = time.time_ns()
        span: Span
        if source.foreign:
            span = source.tracer.start_span(name, context=parent.context, attributes=start(), start_time=started)
            key, context = key_of(span), set_span_in_context(span, parent.context)
        else:
            span, key, context = NOBODYS, (root.key[0], new_span_id()), parent.context
        place = above.place.below(above.name, metadata)
        record = cls(
            kind=kind,
            run_id=run_id,
            name=name,
            root=root,
            parent=parent,
            span=span,
            key=key,
            context=context,
            started=started,
            in_tool=parent.in_tool or parent.kind == "tool",
            attempt=metadata.get(GUARD_ATTEMPT) if metadata else None,
            place=place,
        )
        if not root.asked_config:
            _ask_config(root)
        if kind == "tool":
            tool = name.partition(" ")[2]
            self._add(record, tool, place.within_tool(tool))
        else:
            self._add(record, above.name, place)
        if source.foreign:
            record.token = otel_context.attach(record.context)
        return record

    def end_leaf(self, record: Record) -> None:
        if record.token is not None:
            # Not by opentelemetry.context.detach, which logs what is to be expected: end and start may lie in different
            # contexts.
            with contextlib.suppress(ValueError):
                record.token.var.reset(record.token)
            record.token = None
        self._end(record)
        root = record.root
        if root.run_id == record.run_id and not root.done:  # a bare model or tool: its root is only there to hold it
            if record.raised is not None:
                fail(root, record.raised)
            self.end_root(root)

    def end_root(self, root: RootRecord) -> None:
        """End the root's span after those that are still open below it, and forget its runs."""
        if root.done:
            return
        for record in [record for record in root.open.values() if record is not root]:
            record.error = record.error or UNFINISHED
            self._end(record)
        root.span.set_attribute(semconv.STATUS, root.status)
        if root.source.content:
            write_content(root, {semconv.OUTPUT_MESSAGES: root.final_messages})
        root.message_index.name_all()
        self._threads.remember(root.thread, root.message_index)
        with self._lock:
            for run_id in root.run_ids:
                self.spots.pop(run_id, None)
            if len(self._ended) > _REMEMBERED:
                self._ended, self._ended_before = set(), self._ended
            self._ended.update([getattr(run_id, "int", run_id) for run_id in root.run_ids])
        self._end(root)

    def _add(self, record: Record, name: str, place: Place) -> None:
        root = record.root
        with self._lock:
            self.spots[record.run_id] = Spot(record, root, name, place)
            root.run_ids.append(record.run_id)
            root.open[record.run_id] = record
            if root.source.foreign and record.span.is_recording():
                root.source.by_key[record.key] = record

    def _end(self, record: Record) -> None:
        with self._lock:
            if record.done:
                return
            record.done = True
            record.root.open.pop(record.run_id, None)
        source = record.root.source
        recording = source.foreign and record.span.is_recording()
        record.span.end()
        if not recording:
            source.on_end(record, record.started, time.time_ns())


def fail(record: Record, error: BaseException) -> None:
    """Mark the record and its span as failed."""
    record.raised = error
    record.error = error_message(error)
    if record.span.is_recording():
        record.span.set_attribute(semconv.ERROR_TYPE, type(error).__name__)
        write_status(record)


def write_status(record: Record) -> None:
    """The record's error as the span's status; its text only where content may stand on the spans, since errors quote
    what they failed on."""
    source = record.root.source
    text = record.error if source.content else None
    if text is not None and source.redactor is not None:
        text = source.redactor.redact(text)
    record.span.set_status(Status(StatusCode.ERROR, text))


def write_content(record: Record, contents: Mapping[str, Any]) -> None:
    """Content as JSON on the span, for readers outside this process; see `Source.content`."""
    if record.span.is_recording():
        redactor = record.root.source.redactor
        for name, value in contents.items():
            if value:
                text = as_json(value)
                record.span.set_attribute(name, text if redactor is None else redactor.redact(text))


def _shown(facts: Mapping[str, JSON], source: Source) -> Mapping[str, JSON]:
    """The facts that may stand on a span: without content only our own names and numbers."""
    if not source.content:
        return {
            name: fact for name, fact in facts.items() if name.startswith("cm2.") and not isinstance(fact, list | dict)
        }
    return facts if source.redactor is None else source.redactor.redact_json(facts)


def _ask_config(root: RootRecord) -> None:
    """The ids of user and session, where `configurable` or the graph's context has them. LangChain shows callbacks
    neither: they are read from the config of the first node that calls something."""
    configurable = (var_child_runnable_config.get() or {}).get("configurable")
    if not configurable:
        return
    root.asked_config = True
    context = getattr(configurable.get("__pregel_runtime"), "context", None)
    for values in (configurable, context):
        root.user = root.user or user_of(values)
        root.session = root.session or session_of(values)


def _is_recorded(run_id: UUID) -> bool:
    """Whether the run is part of one that some handler records."""
    with _instances_lock:
        return any(run_id in spans.spots for spans in _instances)
