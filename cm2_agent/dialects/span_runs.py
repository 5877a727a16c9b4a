"""Trees of finished spans into runs: `runs_of` picks each span's dialect, builds a run for each agent and each dialogue
outside of one, and counts what was not understood, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cm2_agent.dialects import genai, openinference, traceloop, vercel
from cm2_agent.dialects.conversations import Conversations
from cm2_agent.dialects.dialogue_run import Extent, build
from cm2_agent.dialects.loose_calls import dialogues
from cm2_agent.dialects.readings import AgentReading, ChatReading, Dialect, Reading, ToolReading, Unread
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.span_tree import Node, linked
from cm2_agent.errors import TraceError
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace

DIALECTS: tuple[Dialect, ...] = (vercel, openinference, traceloop, genai)
"""The dialects in the order in which they are asked: those that write the conventions' names beside their own come
before the conventions."""

_FEW = 64
"""Attributes of a span whose names are remembered."""


@dataclass(frozen=True, kw_only=True)
class SpanRuns:
    """What became of some spans: the runs in the order of their starts, how many spans each dialect read, and how many
    were not understood, by the reason."""

    runs: tuple[Run, ...] = ()
    dialects: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The runs by their conversations, in the order in which these began."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.trace_id, []).append(run)
        return tuple(Trace(id=name, runs=tuple(runs)) for name, runs in found.items())


@lru_cache(256)
def _possible(names: tuple[str, ...]) -> tuple[Dialect, ...]:
    """The dialects that a span with these attributes can be in: an instrumentation gives its spans the same ones."""
    return tuple(dialect for dialect in DIALECTS if any(name.startswith(dialect.MARKS) for name in names))


def read_span(span: SpanRecord) -> tuple[str, Reading] | Unread:
    """The span as its dialect reads it, with the dialect's name. Never raises: what is malformed is Unread."""
    names = tuple(span.attributes)
    for dialect in _possible(names) if len(names) <= _FEW else DIALECTS:
        try:
            reading = dialect.read(span)
        except (TraceError, TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
            reason = str(error) if isinstance(error, TraceError) else f"malformed attributes ({type(error).__name__})"
            return Unread(f"{dialect.NAME}: {reason}")
        if isinstance(reading, Unread):
            return Unread(f"{dialect.NAME}: {reading.reason}")
        if reading is not None:
            return dialect.NAME, reading
    scope = f" (scope {span.scope})" if span.scope else ""
    return Unread(f"no attribute of a known dialect{scope}", known=False)


def runs_of(spans: Iterable[SpanRecord], *, conversations: Conversations | None = None) -> SpanRuns:
    """The runs of finished spans, of one trace or of many, in any order; a span that is there twice counts once.

    A run is an agent's invocation: the topmost agent, workflow or chain of its trace. Model calls outside of any agent
    are a run for each dialogue: those whose prompts go on with what was said before are one. Where they go on with a
    dialogue of another trace, their run has that one's trace id: `conversations` remembers what was said, from one call
    to the next where the same one is given.

    >>> from cm2_agent.dialects.span_record import SpanRecord
    >>> from cm2_agent.dialects.span_runs import runs_of
    >>> messages = '[{"role": "user", "parts": [{"type": "text", "content": "Hello"}]}]'
    >>> answer = '[{"role": "assistant", "parts": [{"type": "text", "content": "Hi!"}]}]'
    >>> said = {"gen_ai.input.messages": messages, "gen_ai.output.messages": answer}
    >>> chat = SpanRecord(trace_id="t", span_id="1", attributes={"gen_ai.operation.name": "chat", **said})
    >>> found = runs_of([chat, SpanRecord(trace_id="t", span_id="2", scope="http")])
    >>> [message.text for message in found.runs[0].messages], dict(found.unread)
    (['Hello', 'Hi!'], {'no attribute of a known dialect (scope http)': 1})
    """
    known = conversations if conversations is not None else Conversations()
    traces: dict[str, dict[str, SpanRecord]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, {}).setdefault(span.span_id, span)
    runs: list[Run] = []
    loose: list[Run] = []
    read, unread = Counter[str](), Counter[str]()
    for by_id in traces.values():
        readings: dict[str, tuple[str, Reading]] = {}
        for span_id, span in by_id.items():
            found = read_span(span)
            if isinstance(found, Unread):
                unread[found.reason] += 1
            else:
                readings[span_id] = found
        nodes: list[Node] = []
        for node in linked(list(by_id.values()), readings):
            if node.is_repeated():
                unread[f"{node.dialect}: the span around it recorded the same"] += 1
            else:
                nodes.append(node)
                read[node.dialect] += 1
        for extent in _extents(nodes, by_id):
            run = build(extent)
            if run is None:
                unread["no message content (is its capture switched off?)"] += sum(1 for _ in extent.nodes())
            else:
                (loose if extent.agent is None else runs).append(run)
    for run in sorted(loose, key=lambda run: run.started):
        runs.append(known.placed(run))
    return SpanRuns(
        runs=tuple(sorted(runs, key=lambda run: run.started)), dialects=dict(read), unread=dict(sorted(unread.items()))
    )


def _extents(nodes: Sequence[Node], spans: Mapping[str, SpanRecord]) -> list[Extent]:
    """What is a run each: the topmost agents with all below them, and the dialogues outside of agents."""
    kept = {id(node) for node in nodes}
    extents: list[Extent] = []
    outside: list[Node] = []
    for node in nodes:
        held = any(isinstance(above.reading, AgentReading) for above in node.above())
        if isinstance(node.reading, AgentReading) and not held:
            below = [one for one in node.below() if id(one) in kept]
            extents.append(Extent.of(node, below))
        elif not held and isinstance(node.reading, ChatReading | ToolReading):
            outside.append(node)
    return extents + dialogues(outside, spans)


__all__ = ["DIALECTS", "SpanRuns", "read_span", "runs_of"]
