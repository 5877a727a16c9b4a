"""A shop's agent as its team wrote it: plain function nodes, streaming, tools run by hand, one subgraph with a tool
node. It knows nothing of what watches it; `LEDGER` is the shop's own count of what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

LEDGER: Counter[str] = Counter()


@tool
def get_order(order_id: int) -> str:
    """Look an order up."""
    LEDGER["get_order"] += 1
    return f"order {order_id}: shipped"


def refund(order_id: int) -> str:
    """Refund an order."""
    LEDGER["refund"] += 1
    return f"order {order_id} refunded"


@tool
def search(words: str) -> str:
    """Search the handbook."""
    LEDGER["search"] += 1
    return f"nothing about {words}"


BY_HAND: dict[str, BaseTool | Callable[..., str]] = {"get_order": get_order, "refund": refund}


async def run_tools(state: MessagesState) -> dict[str, Any]:
    """What the model asked for, from a dict."""
    asked = state["messages"][-1]
    said = []
    for call in asked.tool_calls if isinstance(asked, AIMessage) else ():
        chosen = BY_HAND[call["name"]]
        content = await chosen.ainvoke(call["args"]) if isinstance(chosen, BaseTool) else chosen(**call["args"])
        said.append(ToolMessage(content=content, name=call["name"], tool_call_id=call["id"]))
    return {"messages": said}


def where(state: MessagesState) -> str:
    """The handbook's searches go to the researchers, the rest is done here."""
    asked = state["messages"][-1]
    names = {call["name"] for call in asked.tool_calls} if isinstance(asked, AIMessage) else set()
    return "research" if "search" in names else "run_tools" if names else "sign_off"


def joined(chunks: list[Any]) -> Any:
    """The message that was streamed."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


def build(model: BaseChatModel) -> Any:
    """The compiled graph on a chat model that can be given tools."""
    equipped = model.bind_tools([get_order, refund, search])

    async def think(state: MessagesState) -> dict[str, Any]:
        chunks = [chunk async for chunk in equipped.astream([SystemMessage("You help."), *state["messages"]])]
        LEDGER["model"] += 1
        return {"messages": [joined(chunks)]}

    def sign_off(state: MessagesState) -> dict[str, Any]:
        chunks = list(model.stream([SystemMessage("You end letters."), *state["messages"]]))
        LEDGER["model"] += 1
        return {"messages": [joined(chunks)]}

    research = StateGraph(MessagesState)
    research.add_node("tools", ToolNode([search]))
    research.add_edge(START, "tools")

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("run_tools", run_tools)
    graph.add_node("research", research.compile())
    graph.add_node("sign_off", sign_off)
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", where, ["research", "run_tools", "sign_off"])
    graph.add_edge("research", "think")
    graph.add_edge("run_tools", "think")
    graph.add_edge("sign_off", END)
    return graph.compile()


def graph() -> Any:
    """The app as it is deployed."""
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    return build(ChatOpenAI(model="gpt-5-mini", api_key=SecretStr("set by the deployment")))
