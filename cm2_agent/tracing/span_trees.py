"""Spans that other instrumentations put on a provider, gathered until an agent or a trace has ended, then read into
runs."""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk._logs import LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from cm2_agent.dialects.conversations import Conversations
from cm2_agent.dialects.log_events import log_event
from cm2_agent.dialects.readings import AgentReading, Unread
from cm2_agent.dialects.sdk_spans import plain_value, span_record
from cm2_agent.dialects.span_record import SpanEvent, SpanRecord
from cm2_agent.dialects.span_runs import read_span, runs_of
from cm2_agent.incidents import Incidents
from cm2_agent.types.run import Run

__all__ = ["LogEventProcessor", "SpanTreeProcessor"]

OWN_SCOPE: Final = "cm2_agent"
"""The scope of the spans of `watch` and `observe`, whose runs are recorded already."""
_MOST_SPANS: Final = 10_000
"""Ended spans that one trace may hold before what is there is read."""
_MOST_OPEN: Final = 50_000
"""Spans that are open at once, of which the oldest are given up: somebody never ends them."""
_Key = tuple[int, int]


@dataclass(eq=False)
class _Open:
    """A span that has not ended, in the tree that it belongs to."""

    span: Span
    tree: _Tree
    parent: _Open | None
    events: list[SpanEvent] = field(default_factory=list)


@dataclass(eq=False)
class _Tree:
    """What has ended below one span that has no parent here. `open` counts those that have not ended, `held` those of
    them that an agent's run waits for."""

    ended: list[SpanRecord] = field(default_factory=list)
    open: int = 0


class SpanTreeProcessor(SpanProcessor):
    """Reads a run as soon as its agent's span has ended; calls outside of any agent when all spans of their trace here
    have. What is not understood is counted in `unread` by its reason, and spans by their dialect in `dialects`.

    `on_run` gets each run, in the thread in which the span ended. It never raises into the application."""

    def __init__(self, on_run: Callable[[Run], None], incidents: Incidents) -> None:
        self.on_run, self.incidents = on_run, incidents
        self.unread, self.dialects = Counter[str](), Counter[str]()
        self.conversations = Conversations()
        self.enabled = True
        self._open: OrderedDict[_Key, _Open] = OrderedDict()
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        context = span.context
        if context is None or not self.enabled or _scope(span) == OWN_SCOPE:
            return
        above = span.parent
        with self._lock:
            parent = None if above is None else self._open.get((above.trace_id, above.span_id))
            tree = _Tree() if parent is None else parent.tree
            tree.open += 1
            self._open[context.trace_id, context.span_id] = _Open(span, tree, parent)
            if len(self._open) > _MOST_OPEN:
                _, oldest = self._open.popitem(last=False)
                oldest.tree.open -= 1
                self.incidents.add("capture: a span that was never ended was given up")

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        if context is None:
            return
        with self._lock:
            known = self._open.pop((context.trace_id, context.span_id), None)
        if known is None:
            return
        try:
            self._ended(known, span)
        except Exception as error:
            self.incidents.add(f"capture: a finished span was lost: {type(error).__name__}", error)

    def _ended(self, known: _Open, span: ReadableSpan) -> None:
        record = span_record(span)
        assert record is not None  # it has a context
        if known.events:
            record = replace(record, events=(*record.events, *known.events))
        found = read_span(record)
        if isinstance(found, Unread) and not found.known:
            record = replace(record, attributes={}, events=(), resource={})  # only what hangs from it counts
        with self._lock:
            tree = known.tree
            tree.ended.append(record)
            tree.open -= 1
            spans: list[SpanRecord] = []
            if tree.open == 0 or len(tree.ended) > _MOST_SPANS:
                spans, tree.ended = tree.ended, []
            elif not isinstance(found, Unread) and isinstance(found[1], AgentReading) and not self._held(known):
                spans = self._taken(tree, record)
        if spans:
            self._read(spans)

    def _held(self, known: _Open) -> bool:
        """Whether an agent around it has not ended, or something below it has not."""
        above = known.parent
        while above is not None:
            around = span_record(above.span)
            found = None if around is None else read_span(around)
            if found is not None and not isinstance(found, Unread) and isinstance(found[1], AgentReading):
                return True
            above = above.parent
        return any(other.parent is known for other in self._open.values() if other.tree is known.tree)

    @staticmethod
    def _taken(tree: _Tree, top: SpanRecord) -> list[SpanRecord]:
        """The span and all that has ended below it, which leave the tree."""
        parents = {span.span_id: span.parent_id for span in tree.ended}

        def below(span: SpanRecord) -> bool:
            at: str | None = span.span_id
            for _ in range(len(parents) + 1):
                if at == top.span_id or at is None:
                    return at is not None
                at = parents.get(at)
            return False

        taken = [span for span in tree.ended if below(span)]
        ids = {span.span_id for span in taken}
        tree.ended = [span for span in tree.ended if span.span_id not in ids]
        return taken

    def _read(self, spans: list[SpanRecord]) -> None:
        found = runs_of(spans, conversations=self.conversations)
        with self._lock:
            self.dialects.update(found.dialects)
            self.unread.update(found.unread)
        for reason in found.unread:
            if not reason.startswith("no attribute of a known dialect"):  # other people's spans
                self.incidents.add(f"capture: spans were not understood: {reason}")
        for run in found.runs:
            self.on_run(run)

    def add_event(self, key: _Key, event: SpanEvent) -> None:
        """What a log record says of an open span."""
        with self._lock:
            known = self._open.get(key)
            if known is not None:
                known.events.append(event)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits that could be read: what has not ended may be an agent's run in its middle."""
        return True

    def read_rest(self) -> None:
        """Read what has ended of traces that have not: there will be no more."""
        with self._lock:
            trees = {id(one.tree): one.tree for one in self._open.values() if one.tree.ended}
            waiting = []
            for tree in trees.values():
                waiting.append(tree.ended)
                tree.ended = []
        for spans in waiting:
            try:
                self._read(spans)
            except Exception as error:
                self.incidents.add(f"capture: finished spans were lost: {type(error).__name__}", error)

    def shutdown(self) -> None:
        self.read_rest()

    def _forget(self) -> None:
        """In a forked child: what is open is the parent's."""
        self._lock = threading.RLock()
        self._open.clear()


class LogEventProcessor(LogRecordProcessor):
    """Hands the log records that name an open span to its processor: an instrumentation may write messages so."""

    def __init__(self, spans: SpanTreeProcessor) -> None:
        self._spans = spans

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        log = log_record.log_record
        if not log.trace_id or not log.span_id:
            return
        attributes = {name: plain_value(value) for name, value in (log.attributes or {}).items()}
        time = log.timestamp or log.observed_timestamp or 0
        event = log_event(log.event_name, plain_value(log.body), attributes, time)
        if event is not None and event.name.startswith("gen_ai."):
            self._spans.add_event((log.trace_id, log.span_id), event)

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def _scope(span: Any) -> str:
    scope = span.instrumentation_scope
    return "" if scope is None else str(scope.name)
