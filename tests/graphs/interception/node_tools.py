"""Tools of plain function nodes, and a node to call them in: what the tests of `switchable` share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import ToolException, tool
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from cm2_agent.graphs.backends.backends import TOOLS, Backends
from cm2_agent.graphs.interception.decorator import switchable
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.run import Run, ToolRun
from tests.graphs.interception.switched_app import Invents

CALLED: list[Any] = []


@dataclass(frozen=True)
class Box:
    """Not JSON by itself."""

    size: int


class Order(BaseModel):
    id: int
    due: date | None = None


@switchable
def look(key: int, note: str = "") -> str:
    """Look a key up."""
    CALLED.append((key, note))
    if key < 0:
        raise KeyError(f"no key {key}")
    return f"real {key}"


@switchable
async def fetch(key: int) -> dict[str, int]:
    """Fetch a key."""
    CALLED.append(key)
    return {"key": key}


@switchable
@tool
def find(key: int) -> str:
    """Find a key."""
    CALLED.append(key)
    if key < 0:
        raise ToolException(f"no key {key}")
    return f"found {key}"


@switchable
@tool
async def afind(key: int) -> dict[str, int]:
    """Find a key."""
    CALLED.append(key)
    return {"key": key}


def within(
    work: Callable[[], Any], backends: Backends | None, *handlers: Any, context: Any = None
) -> tuple[Any, list[ToolRun]]:
    """What the work gives inside a plain function node of a run, and the tools' spans."""
    given: list[Any] = []
    runs: list[Run] = []

    def node(state: MessagesState) -> dict[str, Any]:
        given.append(work())
        return {}

    async def anode(state: MessagesState) -> dict[str, Any]:
        given.append(await work())
        return {}

    awaits = inspect.iscoroutinefunction(work)
    schema: Any = None if context is None else dict
    built: Any = StateGraph(MessagesState, context_schema=schema)
    built.add_node("work", anode if awaits else node)
    app = built.add_edge(START, "work").compile()
    configurable = {} if backends is None else {TOOLS: backends}
    config: Any = {"configurable": configurable, "callbacks": [capture(runs.append), *handlers]}
    asked: Any = {"messages": [HumanMessage("go")]}
    if awaits:
        asyncio.run(app.ainvoke(asked, config, context=context))
    else:
        app.invoke(asked, config, context=context)
    return given[0], list(runs[0].tools)


def simulated(*answers: Any) -> Backends:
    return Backends("simulate", simulator=Invents(*answers))
