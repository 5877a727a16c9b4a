"""The tools of a graph: which a switch can see, and which it refuses to run with; apart from the switch because production graphs are
asked the same question by `cm2 doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode

from cm2_agent.errors import ToolError


def tools_of(graph: Any) -> dict[str, BaseTool]:
    """The tools in the graph's tool nodes, its subgraphs' too, by name. Tools that plain function nodes call are not to be seen here."""
    found: dict[str, BaseTool] = {}
    for node in getattr(graph, "nodes", {}).values():
        bound = getattr(node, "bound", node)
        if isinstance(bound, ToolNode):
            found.update(bound.tools_by_name)
        elif hasattr(bound, "nodes") and bound is not graph:
            found.update(tools_of(bound))
    return found


def refuse_unnamed(graph: Any, allow_real: Iterable[str]) -> dict[str, BaseTool]:
    """The graph's tools, all of which are named. Raises ToolError naming those that are not, and names that no tool bears."""
    allowed = set(allow_real)
    tools = tools_of(graph)
    unnamed = sorted(set(tools) - allowed)
    if unnamed:
        flags = " ".join(f"--allow-real {name}" for name in unnamed)
        raise ToolError(
            f"the graph has real tools that are not named: {', '.join(unnamed)}. A run calls no real tool unless it is named: "
            f"allow_real={unnamed!r}, or on the command line {flags}"
        )
    unknown = sorted(allowed - set(tools))
    if unknown and tools:
        raise ToolError(f"allow_real names {', '.join(unknown)}, but the graph's tools are {', '.join(sorted(tools))}")
    return tools


__all__ = ["refuse_unnamed", "tools_of"]
