"""The tools of a graph: which the switch sees, which it cannot, and which it refuses to run with; apart from the switch
because production graphs are asked the same question by `cm2 doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import BaseTool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.pregel import Pregel
from langgraph.store.base import BaseStore

from cm2_agent.errors import ToolError

from ..backends.backends import REPLAYING, SIMULATING
from .code_references import fields_of, is_a, referred
from .walking import tool_nodes

SWITCHABLE = "__cm2_switchable__"
"""Where a function that is `switchable` keeps the tool that it is to the switch."""
_NO_TOOLS = (BaseCallbackHandler, BaseCallbackManager, BaseCheckpointSaver, BaseStore)
_STRUCTURED = (  # LangChain's mark of a schema that is bound as a tool to be parsed, and never called
    "ls_structured_output_format"
)
_OUTPUT_TOOL = "OutputToolBinding"  # the same of create_agent's response_format


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What can be seen of a graph's tools, by name: `tools` those that the switch works on, `nodes` where each of them
    is, `switchable` which of them are decorated; `unseen` the others, with the node whose code refers to them, or whose
    model is bound with them where no code has them. Nodes of subgraphs are `research.tools`."""

    tools: Mapping[str, BaseTool]
    nodes: Mapping[str, str]
    switchable: tuple[str, ...]
    unseen: Mapping[str, str]


def look_over(graph: Any, invented: Callable[[str], bool] = lambda name: False) -> Sight:
    """The graph's tools, found without calling anything of it.

    A tool is seen in a ToolNode (of a subgraph that is a node, too) or as a `switchable`. Unseen are the other tools
    that the code of a node or of a conditional edge refers to: in closures, defaults and the globals that it names, in
    partials, instances and their methods, in lists, tuples, dicts and sets, in runnables, in functions that it calls in
    turn, in compiled graphs that it calls; and the names that a model is bound with and no ToolNode has. So are tools
    that a seen tool's own code refers to (where it is real, so are they), but for those that are `invented`, which
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
    inside = [(f"{nodes[name]}.{name}", tool) for name, tool in tools.items() if not invented(name)]
    for path, start in (*_starts(graph), *inside):
        for found in _named(start, nodes):
            if found.switchable is not None:
                decorated.setdefault(found.name, found.switchable)
                nodes.setdefault(found.name, path)
            else:
                (bound if found.bound else unseen).setdefault(found.name, path)
    missed = {
        name: path for name, path in sorted({**bound, **unseen}.items()) if name not in tools and name not in decorated
    }
    return Sight(tools={**decorated, **tools}, nodes=nodes, switchable=tuple(sorted(decorated)), unseen=missed)


def tools_of(graph: Any) -> dict[str, BaseTool]:
    """The tools that the switch sees, by name: those in the graph's tool nodes, its subgraphs' too, and its
    `switchable` ones."""
    return dict(look_over(graph).tools)


def unseen_tools(graph: Any) -> dict[str, str]:
    """The tools that the switch cannot see, with the node whose code refers to them. `look_over` says what is found and
    what is not."""
    return dict(look_over(graph).unseen)


def refuse_unnamed(
    graph: Any, allow_real: Iterable[str], backends: Mapping[str, str] | str = "real"
) -> dict[str, BaseTool]:
    """The graph's tools that the switch works on.

    `backends` is one for all tools, or `{tool: backend}`, and a tool without one is real. Raises ToolError naming tools
    that would really be called (`real`, `record`) without standing in `allow_real`, tools that the switch cannot see
    and that do not stand there either, and names that no tool bears."""
    allowed = set(allow_real)

    def replaced(name: str) -> bool:
        return (backends if isinstance(backends, str) else backends.get(name)) in REPLAYING | SIMULATING

    sight = look_over(graph, replaced)
    if not isinstance(backends, str) and (strange := sorted(backends.keys() - sight.tools.keys())):
        has = ", ".join(sorted(sight.tools)) or "none"
        raise ToolError(f"tools={dict(backends)!r} names {', '.join(strange)}, but the graph's tools are {has}")
    wrong = []
    unnamed = sorted(name for name in sight.tools.keys() - allowed if not replaced(name))
    if unnamed:
        flags = " ".join(f"--allow-real {name}" for name in unnamed)
        wrong.append(
            f"the graph has real tools that are not named: {', '.join(unnamed)}. A run calls no real tool unless it is"
            f" named: allow_real={unnamed!r}, or on the command line {flags}"
        )
    missed = sorted(sight.unseen.keys() - allowed)
    if missed:
        told = ", ".join(f"{name} (node {sight.unseen[name]})" for name in missed)
        wrong.append(
            f"the switch cannot see the tools that plain function nodes call: {told}. Put each into a ToolNode, or"
            " decorate it with cm2_agent.graphs.switchable, or, where it may really be called, name it:"
            f" allow_real={missed!r}"
        )
    if wrong:
        raise ToolError("; and ".join(wrong))
    known = sight.tools.keys() | sight.unseen.keys()
    unknown = sorted(allowed - known)
    if unknown and known:
        raise ToolError(f"allow_real names {', '.join(unknown)}, but the graph's tools are {', '.join(sorted(known))}")
    return dict(sight.tools)


def switchable_of(value: Any) -> BaseTool | None:
    """The tool that a `switchable` function or tool is to the switch; None for everything else."""
    if type(value) is FunctionType:
        found = value.__dict__.get(SWITCHABLE)
        return found if is_a(found, BaseTool) else None
    return value if is_a(value, BaseTool) and getattr(type(value), SWITCHABLE, False) is True else None


def _starts(graph: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What each node and each conditional edge is made of."""
    for name, node in getattr(graph, "nodes", {}).items():
        bound = getattr(node, "bound", node)
        if not isinstance(bound, Pregel):
            yield f"{path}{name}", bound
        elif bound is not graph:
            yield from _starts(bound, f"{path}{name}.")
        for writer in getattr(node, "writers", None) or ():
            yield f"{path}{name}", writer


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


__all__ = ["SWITCHABLE", "Sight", "look_over", "refuse_unnamed", "switchable_of", "tools_of", "unseen_tools"]
