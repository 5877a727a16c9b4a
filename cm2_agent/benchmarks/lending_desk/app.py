"""The sample app: a lending desk as an ordinary LangGraph graph, and how its owner tells whether a reader was served.

It was written without knowing this project and imports nothing of it. Each dialogue brings its own catalog as the run's
context:

    catalog = open_catalog()
    await build_graph(model).ainvoke({"messages": [("user", "Where does QA/17 stand?")]}, context=catalog)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, ToolRuntime, tools_condition

from .catalog import Catalog, open_catalog

__all__ = ["MAX_CALLS", "NOT_FOUND", "SYSTEM", "TOOLS", "build_graph", "expected", "open_catalog", "success"]

SYSTEM = (
    "You serve readers at the lending desk of a library. Find the copy first. Extend a loan only where nobody waits."
)
NOT_FOUND = "The catalog has no such entry."
MAX_CALLS = 5  # model calls for one message of the reader; a good dialogue needs at most four


@tool
async def find_copy(barcode: str, runtime: ToolRuntime[Catalog]) -> str:
    """Find a copy by its barcode: its title, shelf and due day."""
    return runtime.context.find_copy(barcode)


@tool
async def count_waiting(title: str, runtime: ToolRuntime[Catalog]) -> str:
    """Count the readers who wait for a title."""
    return runtime.context.count_waiting(title)


@tool
async def extend_loan(barcode: str, runtime: ToolRuntime[Catalog]) -> str:
    """Extend the loan of a copy; answers with the new due day."""
    return runtime.context.extend_loan(barcode)


TOOLS = [find_copy, count_waiting, extend_loan]


def build_graph(model: BaseChatModel) -> CompiledStateGraph[MessagesState, Catalog, MessagesState, MessagesState]:
    """The agent: the model calls tools until it answers. Its context is the `Catalog` it works on."""
    bound = model.bind_tools(TOOLS)

    async def agent(state: MessagesState) -> dict[str, list[Any]]:
        messages = state["messages"]
        if not isinstance(messages[0], SystemMessage):
            messages = [SystemMessage(SYSTEM), *messages]
        return {"messages": [await bound.ainvoke(messages)]}

    def after_tools(state: MessagesState) -> str:
        calls = 0
        for message in reversed(state["messages"]):
            if isinstance(message, HumanMessage):
                break
            calls += isinstance(message, AIMessage)
        return "agent" if calls < MAX_CALLS else END

    graph = StateGraph(MessagesState, context_schema=Catalog)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode(TOOLS, handle_tool_errors=NOT_FOUND))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_conditional_edges("tools", after_tools, ["agent", END])
    return graph.compile()


def expected(catalog: Catalog, requests: Sequence[tuple[str, str]]) -> tuple[set[str], list[dict[str, int]]]:
    """What serving the requests, each (ask, barcode), leaves behind: the extended copies, and the facts of each reply.

    Asks are "place" (where it stands, when it is due), "queue" (how many wait, where it stands) and "keep" (extend the
    loan if nobody waits)."""
    extended: set[str] = set()
    facts: list[dict[str, int]] = []
    for ask, barcode in requests:
        copy = catalog.copy(barcode)
        if ask == "keep" and copy.waiting == 0:
            extended.add(barcode)
            facts.append({"until": copy.later, "shelf": copy.shelf})
        elif ask == "keep":
            facts.append({"waiting": copy.waiting, "due": copy.due})
        elif ask == "queue":
            facts.append({"waiting": copy.waiting, "shelf": copy.shelf})
        else:
            facts.append({"shelf": copy.shelf, "due": copy.later if barcode in extended else copy.due})
    return extended, facts


def success(catalog: Catalog, requests: Sequence[tuple[str, str]], replies: Sequence[str]) -> bool:
    """Whether the reader was served, by the database as it is afterwards and the facts in the reply to each message."""
    extended, facts = expected(catalog, requests)
    if catalog.extended() != extended or len(replies) < len(facts):
        return False
    return all(
        {(name, str(value)) for name, value in wanted.items()}
        == set(re.findall(r"\b(shelf|due|until|waiting) (\d+)", reply.lower()))
        for wanted, reply in zip(facts, replies, strict=False)
    )
