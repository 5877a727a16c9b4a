"""The spans of one trace as a tree of what the dialects read, and the parts of it that are a run each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cm2_agent.dialects.readings import AgentReading, ChatReading, Reading, ToolReading
from cm2_agent.dialects.span_record import SpanRecord


@dataclass(slots=True, eq=False)
class Node:
    """A span that was read, below the nearest one above it that was."""

    span: SpanRecord
    reading: Reading
    dialect: str
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)

    def above(self) -> Iterator[Node]:
        """Its ancestors, the nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def below(self) -> Iterator[Node]:
        """Its descendants, a parent before its children."""
        waiting = list(reversed(self.children))
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    @property
    def in_tool(self) -> bool:
        return any(isinstance(node.reading, ToolReading) for node in self.above())

    def is_repeated(self) -> bool:
        """Whether a span around this one recorded the same: another instrumentation's of the same call, or of the
        same execution."""
        reading = self.reading
        if isinstance(reading, ChatReading):
            for node in self.above():
                if isinstance(node.reading, ChatReading):
                    return bool(node.reading.input) or node.reading.output is not None
                if isinstance(node.reading, ToolReading | AgentReading):
                    return False
        if isinstance(reading, ToolReading):
            for node in self.above():
                if isinstance(node.reading, ToolReading):
                    around = node.reading
                    same_id = reading.call_id in (None, around.call_id) or around.call_id is None
                    return around.name == reading.name and same_id and around.arguments in (None, reading.arguments)
                if isinstance(node.reading, ChatReading | AgentReading):
                    return False
        return False


def linked(spans: Sequence[SpanRecord], readings: dict[str, tuple[str, Reading]]) -> list[Node]:
    """The nodes of one trace's spans that were read, by span id, in the order of their starts. A span that was not read
    is passed over: what it holds hangs from what holds it. A circle of parents is cut."""
    known = {span.span_id: span for span in spans}
    nodes = {
        span.span_id: Node(span, readings[span.span_id][1], readings[span.span_id][0])
        for span in spans
        if span.span_id in readings
    }
    for span_id, node in nodes.items():
        seen = {span_id}
        above = node.span.parent_id
        while above is not None and above in known and above not in seen:
            if above in nodes:
                node.parent = nodes[above]
                break
            seen.add(above)
            above = known[above].parent_id
    for node in nodes.values():
        trail = {id(node)}
        above_node = node.parent
        while above_node is not None:
            if id(above_node) in trail:
                node.parent = None
                break
            trail.add(id(above_node))
            above_node = above_node.parent
    ordered = sorted(nodes.values(), key=lambda node: (node.span.start, node.span.end))
    for node in ordered:
        if node.parent is not None:
            node.parent.children.append(node)
    return ordered


__all__ = ["Node", "linked"]
