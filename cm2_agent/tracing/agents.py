"""Whose step a model call or a tool's execution is, in a graph that holds several agents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from cm2_agent.tracing.span_records import ChatRecord, ToolRecord

_UNNAMED = "LangGraph"
"""What LangGraph calls a graph that was given no name."""
_AGENT_NODES = frozenset({"agent", "model", "call_model"})
"""Where the prebuilt agents call their model: such a node names nobody."""


class Place(NamedTuple):
    """Where a LangChain run stands: LangGraph's namespace around it, the agent whose step it is, the node of the
    outermost graph (unless the run is inside another graph there), and the tool that it is directly within."""

    namespace: str = ""
    agent: str | None = None
    node: str | None = None
    tool: str | None = None
    root: bool = False

    @classmethod
    def of_root(cls, metadata: Mapping[str, Any]) -> Place:
        """The outermost graph; `create_agent(name=…)` names its agent in the metadata."""
        return cls("", _text(metadata.get("lc_agent_name")), root=True)

    def below(self, name: str, metadata: Mapping[str, Any] | None) -> Place:
        """The place of a run that the one here, which is called `name`, has started."""
        facts = metadata or {}
        own, namespace = self.namespace, facts.get("langgraph_checkpoint_ns") or self.namespace
        if namespace == own or (own and _depth(namespace) <= _depth(own)):
            return Place(own, self.agent, self.node, self.tool) if self.root else self
        # The run is a node, and this one its graph; or a task of the functional API, and this one what called it.
        path = facts.get("langgraph_path")
        task = isinstance(path, list | tuple) and len(path) > 1 and isinstance(path[1], list | tuple)
        agent, node = self.agent, self.node
        if self.root or task:
            node = _text(facts.get("langgraph_node")) if self.root or node is not None else None
        else:
            agent, node = name if name != _UNNAMED else self.tool or _last(self.namespace), None
        return Place(namespace, agent, node)

    def within_tool(self, tool: str) -> Place:
        """The place of what a tool does: a graph without a name goes by the tool's."""
        return Place(self.namespace, self.agent, self.node, tool, self.root)


NOWHERE = Place()


def name_agents(
    graph: str, chats: Sequence[ChatRecord], tools: Sequence[ToolRecord], written: Iterable[int]
) -> dict[int, str | None]:
    """For the identity of each record the agent whose step it is, None where the graph has only one that was given no
    name.

    Nested graphs and `create_agent(name=…)` say their names. A call of the outermost graph itself is its node's, where
    several of its nodes write the dialogue or other agents are in the run; of a prebuilt agent's node, the graph's. A
    tool is used by whoever called it."""
    wrote = set(written)
    nodes = {chat.place.node for chat in chats if chat.place.agent is None and id(chat) in wrote}
    several = len(nodes) > 1 or any(record.place.agent is not None for record in (*chats, *tools))
    main = graph if several and graph != _UNNAMED else None
    names: dict[int, str | None] = {}
    callers: dict[str, str | None] = {}
    for chat in chats:
        place = chat.place
        by_node = several and place.node is not None and place.node not in _AGENT_NODES
        names[id(chat)] = place.agent or (place.node if by_node else main if place.node is not None else None)
        for call in () if chat.output is None else chat.output.message.tool_calls:
            if call.id is not None:
                callers[call.id] = names[id(chat)]
    for tool in tools:
        known = tool.call_id is not None and tool.call_id in callers
        agent = tool.place.agent or (main if tool.place.node is not None else None)
        names[id(tool)] = callers[tool.call_id] if known and tool.call_id is not None else agent
    return names


def _depth(namespace: str) -> int:
    return namespace.count("|") + 1 if namespace else 0


def _last(namespace: str) -> str | None:
    return _text(namespace.rpartition("|")[2].partition(":")[0])


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
