"""The calls that executions of tools answer whose spans do not name one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from cm2_agent.dialects.readings import ChatReading, ToolReading
from cm2_agent.dialects.span_tree import Node
from cm2_agent.types.json_values import JSON, same_json
from cm2_agent.types.messages import ToolCall


@dataclass(frozen=True)
class _Asked:
    call: ToolCall
    chat: Node


def with_call_ids(nodes: Iterable[Node]) -> Iterator[tuple[Node, ToolReading]]:
    """The executions among the nodes, in their order. One whose span names no call gets the id of a call of its tool
    that was answered before it began and that no other execution took: of the latest model call's, there the one with
    its arguments, else the first. It stays without an id where there is none."""
    known = list(nodes)
    named = {node.reading.call_id for node in known if isinstance(node.reading, ToolReading)}
    open_calls = [
        _Asked(call, node)
        for node in known
        if isinstance(node.reading, ChatReading) and node.reading.output is not None
        for call in node.reading.output.tool_calls
        if call.id and call.id not in named
    ]
    given: dict[int, str] = {}
    tools = [node for node in known if isinstance(node.reading, ToolReading) and not node.reading.call_id]
    for node in sorted(tools, key=lambda one: one.span.start):
        found = _asked_by(node, open_calls)
        if found is not None and found.call.id is not None:
            given[id(node)] = found.call.id
            open_calls.remove(found)
    for node in known:
        if isinstance(node.reading, ToolReading):
            identity = given.get(id(node))
            yield node, node.reading if identity is None else replace(node.reading, call_id=identity)


def _asked_by(node: Node, open_calls: Iterable[_Asked]) -> _Asked | None:
    reading = node.reading
    if not isinstance(reading, ToolReading):
        return None
    before = [
        one
        for one in open_calls
        if one.call.name == reading.name
        and one.chat.in_tool == node.in_tool
        and (not node.span.start or one.chat.span.start <= node.span.start)
    ]
    if not before:
        return None
    latest = max(before, key=lambda one: one.chat.span.start).chat
    own = [one for one in before if one.chat is latest]
    return next((one for one in own if _same(one.call.arguments, reading.arguments)), own[0])


def _same(asked: JSON, ran: JSON) -> bool:
    given, had = asked or {}, ran or {}
    if not isinstance(given, Mapping) or not isinstance(had, Mapping):
        return same_json(given, had)
    return all(key in had and same_json(had[key], value) for key, value in given.items())


__all__ = ["with_call_ids"]
