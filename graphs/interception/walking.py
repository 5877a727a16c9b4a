"""Going through a compiled graph to its tool nodes, its subgraphs' too; apart because the switch copies what others
only read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from langchain_core.runnables import RunnableBinding, RunnableSequence
from langgraph._internal._runnable import RunnableSeq
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

Change = Callable[[ToolNode], ToolNode]


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


__all__ = ["tool_nodes", "with_tool_nodes"]
