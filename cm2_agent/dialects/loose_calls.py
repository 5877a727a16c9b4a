"""Model calls and tools outside of any agent's span, cut into dialogues by what the calls were shown."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from cm2_agent.dialects.dialogue_run import Extent
from cm2_agent.dialects.readings import ChatReading, ToolReading
from cm2_agent.dialects.seen_message import SeenMessage
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.span_tree import Node


@dataclass(eq=False)
class _Dialogue:
    nodes: list[Node]
    thread: str | None
    said: Hashable = None
    """The last answer."""
    asked: tuple[Hashable, ...] = ()
    """The last prompt."""
    calls: set[str] = field(default_factory=set)


def dialogues(nodes: Sequence[Node], spans: Mapping[str, SpanRecord]) -> list[Extent]:
    """A dialogue for each line of calls that go on with each other: a call's prompt holds the last answer of its
    dialogue, or is the last prompt again, as in a retry. Executions of tools belong to the dialogue that asked for
    them."""
    found: list[_Dialogue] = []
    tools: list[Node] = []
    for node in nodes:
        reading = node.reading
        if isinstance(reading, ToolReading):
            tools.append(node)
        elif isinstance(reading, ChatReading) and not node.in_tool:
            prompt = tuple([SeenMessage(message, None).key for message in reading.input if message.role != "system"])
            dialogue = next((one for one in reversed(found) if _goes_on(one, prompt, reading)), None)
            if dialogue is None:
                dialogue = _Dialogue([], reading.facts.thread)
                found.append(dialogue)
            dialogue.nodes.append(node)
            dialogue.asked = prompt
            if reading.output is not None:
                dialogue.said = SeenMessage(reading.output, None).key
                dialogue.calls |= {call.id for call in reading.output.tool_calls if call.id is not None}
    for node in tools:
        reading = node.reading
        assert isinstance(reading, ToolReading)
        own = [one for one in found if reading.call_id is not None and reading.call_id in one.calls]
        before = [one for one in found if one.nodes[0].span.start <= node.span.start]
        for dialogue in (own or before or found)[-1:]:
            dialogue.nodes.append(node)
    return [Extent.loose(one.nodes, _around(one.nodes[0], spans)) for one in found]


def _goes_on(dialogue: _Dialogue, prompt: tuple[Hashable, ...], reading: ChatReading) -> bool:
    if dialogue.thread is not None and reading.facts.thread is not None and dialogue.thread != reading.facts.thread:
        return False
    if dialogue.said is not None and dialogue.said in prompt:
        return True
    return dialogue.said is None and bool(prompt) and prompt == dialogue.asked


def _around(node: Node, spans: Mapping[str, SpanRecord]) -> SpanRecord | None:
    """The topmost span of the trace that holds the node, None where that is the node's own."""
    span, seen = node.span, {node.span.span_id}
    while span.parent_id is not None and span.parent_id in spans and span.parent_id not in seen:
        seen.add(span.parent_id)
        span = spans[span.parent_id]
    return None if span is node.span else span


__all__ = ["dialogues"]
