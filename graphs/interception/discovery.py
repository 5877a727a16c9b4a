"""The tools of a graph: where its tool nodes are, which tools the switch works on, which it cannot see, and which a run
refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import RunnableBinding, RunnableSequence
from langchain_core.tools import BaseTool
from langgraph._internal._runnable import RunnableSeq
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel
from langgraph.store.base import BaseStore

from cm2_agent.errors import ToolError

from ..backends.tool_backends import ToolChoice, check_backends, is_real
from .code_references import fields_of, is_a, referred

SWITCHABLE = "__cm2_switchable__"
"""Where a function that is `switchable` keeps the tool that it is to the switch."""
_NO_TOOLS = (BaseCallbackHandler, BaseCallbackManager, BaseCheckpointSaver, BaseStore)
_STRUCTURED = (  # LangChain's mark of a schema that is bound as a tool to be parsed, and never called
    "ls_structured_output_format"
)
_OUTPUT_TOOL = "OutputToolBinding"  # the same of create_agent's response_format

Change = Callable[[ToolNode], ToolNode]


@dataclass(frozen=True, kw_only=True)
class ToolInventory:
    """What can be seen of a graph's tools, by name: `tools` those that the switch works on, `nodes` where each of them
    is, `switchable` which of them are decorated; `unseen` the others, with the node whose code refers to them, or whose
    model is bound with them where no code has them. Nodes of subgraphs are `research.tools`."""

    tools: Mapping[str, BaseTool]
    nodes: Mapping[str, str]
    switchable: tuple[str, ...]
    unseen: Mapping[str, str]


def discover_tools(graph: Any, replaced: Callable[[str], bool] = lambda name: False) -> ToolInventory:
    """The graph's tools, found without calling anything of it.

    A tool is seen in a ToolNode (of a subgraph that is a node, too) or as a `switchable`. Unseen are the other tools
    that the code of a node or of a conditional edge refers to: in closures, defaults and the globals that it names, in
    partials, instances and their methods, in lists, tuples, dicts and sets, in runnables, in functions that it calls in
    turn, in compiled graphs that it calls; and the names that a model is bound with and no ToolNode has. So are tools
    that a seen tool's own code refers to (where it is real, so are they), but for those that are `replaced`, which
    never run.

    What is not found: tools that are looked up by a name made at run time (`getattr`, `globals()`, a registry filled
    later), made or fetched inside a node (an MCP client in a function, a module not imported yet), kept by a context
    variable, a generator or a C extension, in collections of more than 10,000 members, more than 24 references (in
    installed packages: 3 calls) away, or behind the 200,000 things that are looked at from one node. A plain Python
    function that a node calls is a tool to nobody but its author: it is named where a model was bound with its schema,
    or where it stands in a collection that code saying `bind_tools` refers to, and not else. A tool that a ToolNode has
    counts as seen even if a function node calls it by hand as well: what code refers to does not tell binding from
    calling; for the same reason a tool that code only mentions is named. `RealToolGuard` stops those that are LangChain
    tools when they are called; `cm2 doctor` counts the calls that left no span."""
    tools: dict[str, BaseTool] = {}
    nodes: dict[str, str] = {}
    for path, node in tool_nodes(graph):
        for name, tool in node.tools_by_name.items():
            tools[name] = tool
            nodes.setdefault(name, path)
    decorated: dict[str, BaseTool] = {}
    unseen: dict[str, str] = {}
    bound: dict[str, str] = {}
    inside = [(f"{nodes[name]}.{name}", tool) for name, tool in tools.items() if not replaced(name)]
    for path, start in (*starts(graph), *inside):
        for found in _named(start, nodes):
            if found.switchable is not None:
                decorated.setdefault(found.name, found.switchable)
                nodes.setdefault(found.name, path)
            else:
                (bound if found.bound else unseen).setdefault(found.name, path)
    missed = {
        name: path for name, path in sorted({**bound, **unseen}.items()) if name not in tools and name not in decorated
    }
    return ToolInventory(tools={**decorated, **tools}, nodes=nodes, switchable=tuple(sorted(decorated)), unseen=missed)


def tools_of(graph: Any) -> dict[str, BaseTool]:
    """The tools that stand-ins can answer, by name: those in the graph's tool nodes, its subgraphs' too, and its
    `switchable` ones.

    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent.graphs import FunctionTools, agent, tools_of
    >>> class Model(GenericFakeChatModel):
    ...     def bind_tools(self, tools, **kwargs):
    ...         return self
    >>> def get_order(order_id: int) -> str:
    ...     "Look an order up."
    ...     return "shipped"
    >>> list(tools_of(agent(Model(messages=iter([])), FunctionTools(get_order))))
    ['get_order']
    """
    return dict(discover_tools(graph).tools)


def undiscovered_tools(graph: Any) -> dict[str, str]:
    """The tools that the switch cannot see, with the node whose code refers to them. `discover_tools` says what is
    found and what is not."""
    return dict(discover_tools(graph).unseen)


def require_allowed(graph: Any, allow_real: Iterable[str], backends: ToolChoice = "real") -> dict[str, BaseTool]:
    """The graph's tools that the switch works on.

    `backends` is one for all tools, or `{tool: backend}`, and a tool without one is real. Raises ToolError naming tools
    that would really be called (`real`, `record`) without standing in `allow_real`, tools that the switch cannot see
    and that do not stand there either, and names that no tool bears."""
    check_backends(backends)
    allowed = set(allow_real)

    def replaced(name: str) -> bool:
        return not is_real(backends, name)

    inventory = discover_tools(graph, replaced)
    if isinstance(backends, Mapping) and (strange := sorted(backends.keys() - inventory.tools.keys())):
        has = ", ".join(sorted(inventory.tools)) or "none"
        raise ToolError(f"tools names {', '.join(strange)}, but the graph's tools are {has}")
    wrong = []
    unnamed = sorted(name for name in inventory.tools.keys() - allowed if not replaced(name))
    if unnamed:
        flags = " ".join(f"--allow-real {name}" for name in unnamed)
        wrong.append(
            f"the graph has real tools that are not named: {', '.join(unnamed)}. A run calls no real tool unless it is"
            f" named: allow_real={unnamed!r}, or on the command line {flags}"
        )
    missed = sorted(inventory.unseen.keys() - allowed)
    if missed:
        places = ", ".join(f"{name} (node {inventory.unseen[name]})" for name in missed)
        wrong.append(
            f"the switch cannot see the tools that plain function nodes call: {places}. Put each into a ToolNode, or"
            " decorate it with cm2_agent.graphs.switchable, or, where it may really be called, name it:"
            f" allow_real={missed!r}"
        )
    if wrong:
        raise ToolError("; and ".join(wrong))
    known = inventory.tools.keys() | inventory.unseen.keys()
    unknown = sorted(allowed - known)
    if unknown and known:
        raise ToolError(f"allow_real names {', '.join(unknown)}, but the graph's tools are {', '.join(sorted(known))}")
    return dict(inventory.tools)


def switchable_of(value: Any) -> BaseTool | None:
    """The tool that a `switchable` function or tool is to the switch; None for everything else."""
    if type(value) is FunctionType:
        found = value.__dict__.get(SWITCHABLE)
        return found if is_a(found, BaseTool) else None
    return value if is_a(value, BaseTool) and getattr(type(value), SWITCHABLE, False) is True else None


def starts(graph: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What each node and each conditional edge is made of."""
    for name, node in getattr(graph, "nodes", {}).items():
        bound = getattr(node, "bound", node)
        if not isinstance(bound, Pregel):
            yield f"{path}{name}", bound
        elif bound is not graph:
            yield from starts(bound, f"{path}{name}.")
        for writer in getattr(node, "writers", None) or ():
            yield f"{path}{name}", writer


def tool_nodes(graph: Any, path: str = "") -> Iterator[tuple[str, ToolNode]]:
    """Each tool node with the path of its node, such as `research.tools` for one in a subgraph."""
    for name, node in getattr(graph, "nodes", {}).items():
        yield from _within(getattr(node, "bound", node), f"{path}{name}", graph)


def _within(runnable: Any, path: str, outer: Any) -> Iterator[tuple[str, ToolNode]]:
    if isinstance(runnable, ToolNode):
        yield path, runnable
    elif isinstance(runnable, Pregel):
        if runnable is not outer:
            yield from tool_nodes(runnable, f"{path}.")
    elif isinstance(runnable, RunnableBinding):
        yield from _within(runnable.bound, path, outer)
    elif isinstance(runnable, RunnableSequence | RunnableSeq):
        for step in runnable.steps:
            yield from _within(step, path, outer)


def with_tool_nodes(graph: Any, change: Change) -> Any:
    """A copy of a compiled graph with each tool node changed; the graph itself stays as it is."""
    nodes = {}
    for name, node in graph.nodes.items():
        changed = _changed(node.bound, change, graph)
        subgraphs: Mapping[str, Any] = {"subgraphs": [changed]} if isinstance(changed, Pregel) else {}
        nodes[name] = node if changed is node.bound else node.copy({"bound": changed, **subgraphs})
    return graph.copy({"nodes": nodes})


def _changed(runnable: Any, change: Change, outer: Any) -> Any:
    if isinstance(runnable, ToolNode):
        return change(runnable)
    if isinstance(runnable, Pregel):
        return runnable if runnable is outer else with_tool_nodes(runnable, change)
    if isinstance(runnable, RunnableBinding):
        bound = _changed(runnable.bound, change, outer)
        return runnable if bound is runnable.bound else runnable.model_copy(update={"bound": bound})
    if isinstance(runnable, RunnableSequence):
        steps = [_changed(step, change, outer) for step in runnable.steps]
        same = all(new is old for new, old in zip(steps, runnable.steps, strict=True))
        return runnable if same else RunnableSequence(*steps, name=runnable.name)
    if isinstance(runnable, RunnableSeq):
        made = copy.copy(runnable)
        made.steps = [_changed(step, change, outer) for step in runnable.steps]
        return made
    return runnable


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A tool that something refers to: as a switchable, as a tool, or only by the name that a model is bound with."""

    name: str
    switchable: BaseTool | None = None
    bound: bool = False


def _named(start: Any, seen: Mapping[str, str]) -> Iterator[_Named]:
    def stop(value: Any) -> bool:
        if value is start:
            return False
        if is_a(value, BaseTool) and fields_of(value).get("name") in seen:
            return True
        return is_a(value, _NO_TOOLS) or switchable_of(value) is not None or type(value).__name__ == _OUTPUT_TOOL

    for value, names in referred(start, stop):
        switchable = switchable_of(value)
        if switchable is not None:
            yield _Named(name=switchable.name, switchable=switchable)
        elif is_a(value, BaseTool):
            yield _Named(name=str(fields_of(value).get("name")))
        elif is_a(value, RunnableBinding):
            yield from (_Named(name=name, bound=True) for name in _bound(fields_of(value).get("kwargs")))
        elif "bind_tools" in names and type(value) in (list, tuple, set, dict):
            members = list(value.values()) if type(value) is dict else list(value)
            plain = [one for one in members if type(one) is FunctionType and switchable_of(one) is None]
            yield from (_Named(name=one.__name__, bound=True) for one in plain)


def _bound(kwargs: Any) -> Iterator[str]:
    """The names of the tools that a model is bound with."""
    if not is_a(kwargs, dict) or _STRUCTURED in kwargs:
        return
    for key in ("tools", "functions"):
        listed = kwargs.get(key)
        for tool in listed if is_a(listed, (list, tuple)) else ():
            if is_a(tool, dict):
                inner = tool.get("function")
                name = (inner if is_a(inner, dict) else tool).get("name") or tool.get("type")
            else:
                name = fields_of(tool).get("name") if is_a(tool, BaseTool) else getattr(tool, "__name__", None)
            if type(name) is str and name:
                yield name


__all__ = [
    "SWITCHABLE",
    "ToolInventory",
    "discover_tools",
    "require_allowed",
    "starts",
    "switchable_of",
    "tool_nodes",
    "tools_of",
    "undiscovered_tools",
    "with_tool_nodes",
]
