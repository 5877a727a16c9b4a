"""The tools of a graph: which a switch can see, and the guard that lets no real tool be called unless it is named.

Apart from the dialogue because production graphs are asked the same question by `cm2 doctor`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
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


class RealToolGuard(BaseCallbackHandler):
    """Stops a tool that is not named before it runs, wherever it is called from (a plain function node, a sub-agent).

    LangChain tells callbacks of a tool before calling it; raising there is what keeps the call from happening. `stopped` remembers
    the names, since a graph may catch the error and go on.
    """

    raise_error = True
    run_inline = True

    def __init__(self, allow_real: Iterable[str]) -> None:
        self.allowed = frozenset(allow_real)
        self.stopped: set[str] = set()

    def on_tool_start(self, serialized: dict[str, Any], input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        name = str(kwargs.get("name") or (serialized or {}).get("name") or "")
        if name not in self.allowed:
            self.stopped.add(name)
            raise ToolError(f"tool {name!r} was not called: a run calls no real tool that is not in allow_real={sorted(self.allowed)}")


__all__ = ["RealToolGuard", "refuse_unnamed", "tools_of"]
