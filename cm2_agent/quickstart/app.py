"""The sample app: an order-support desk as an ordinary LangGraph graph, and how its owner tells whether a customer was
served.

It was written without knowing this project and imports nothing of it. Each dialogue brings its own desk as the run's
context:

    desk = open_desk()
    await build_graph(model).ainvoke({"messages": [("user", "Where is order KL-117?")]}, context=desk)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, ToolRuntime, tools_condition

from .order_desk import OrderDesk, open_desk

__all__ = ["MAX_CALLS", "NOT_FOUND", "SYSTEM", "TOOLS", "build_graph", "open_desk", "success"]

SYSTEM = (
    "You answer customers of a furniture shop. Look up the order before you answer or act. Cancel only open orders."
)
NOT_FOUND = "There is no such thing."
MAX_CALLS = 5  # model calls for one customer message; a good dialogue needs at most three


@tool
async def get_order(order_id: str, runtime: ToolRuntime[OrderDesk]) -> str:
    """Look up an order: its item, status, day of delivery and price."""
    return runtime.context.get_order(order_id)


@tool
async def check_stock(item: str, runtime: ToolRuntime[OrderDesk]) -> str:
    """Look up how many pieces of an item are in stock."""
    return runtime.context.check_stock(item)


@tool
async def cancel_order(order_id: str, runtime: ToolRuntime[OrderDesk]) -> str:
    """Cancel an order."""
    return runtime.context.cancel_order(order_id)


TOOLS = [get_order, check_stock, cancel_order]


def build_graph(
    model: BaseChatModel, checkpointer: BaseCheckpointSaver[Any] | None = None
) -> CompiledStateGraph[MessagesState, OrderDesk, MessagesState, MessagesState]:
    """The agent: the model calls tools until it answers. Its context is the `OrderDesk` it works on."""
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

    graph = StateGraph(MessagesState, context_schema=OrderDesk)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode(TOOLS, handle_tool_errors=NOT_FOUND))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_conditional_edges("tools", after_tools, ["agent", END])
    return graph.compile(checkpointer=checkpointer)


def success(desk: OrderDesk, fields: Mapping[str, Any], replies: Sequence[str]) -> bool:
    """Whether the customer was served, by the database as it is afterwards and the reply to each message.

    `fields` holds `order_id` and `asks`, what each message asked for: "status", "stock" or "cancel".
    """
    asks, order = fields["asks"], desk.order(fields["order_id"])
    may_cancel = "cancel" in asks and order.status == "open"
    if desk.cancelled() != ({order.id} if may_cancel else set()) or len(replies) < len(asks):
        return False
    pieces = desk.pieces(order.item)
    for ask, reply in zip(asks, replies, strict=False):
        words = set(re.findall(r"[a-z]+|[0-9]+", reply.lower()))
        if ask == "stock":
            right = str(pieces) in words
        elif ask == "cancel" and may_cancel:
            right = {"cancelled", str(order.price)} <= words
        else:
            right = {order.status, str(order.day)} <= words and "cancelled" not in words
        if not right:
            return False
    return True
