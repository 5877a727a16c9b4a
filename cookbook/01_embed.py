"""Embed: watch an agent that is not ours, and see every dialogue scored.

The graph below is written against LangGraph alone. `watch` puts a traced graph in its place; three customers are
served, one of them by guessing. Its model is scripted, so that the recipe needs no key: put your own in.

You should see: mean reward 0.67 over 3 dialogues
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from cm2_agent import Checklist, Item, SQLStore, flush, watch


def get_order(order_id: str) -> dict[str, str]:
    """Look up an order."""
    return {"status": "shipped", "arrives": f"2026-05-2{order_id}"}


class Clerk(BaseChatModel):
    """A scripted model: looks the order up and tells the day, unless the customer is in a hurry."""

    @property
    def _llm_type(self) -> str:
        return "clerk"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.answer(messages))])

    def answer(self, messages: Sequence[BaseMessage]) -> AIMessage:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            order = json.loads(str(last.content))
            return AIMessage(f"It was {order['status']} and arrives on {order['arrives']}.")
        if "quickly" in str(last.content):
            return AIMessage("It arrives on 2026-05-29.")
        number = str(last.content).rstrip("?").split()[-1]
        return AIMessage("", tool_calls=[ToolCall(name="get_order", args={"order_id": number}, id="1")])


def build() -> Any:
    model = Clerk()

    def speak(state: MessagesState) -> dict[str, list[AIMessage]]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", speak)
    graph.add_node("tools", ToolNode([get_order]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


day = {"tool": "get_order", "path": "arrives"}  # what the tool itself answered, wherever the reply comes from
support = Checklist(
    Item("looks_up_first", check={"called": "get_order", "with": {"order_id": {"from": "user"}}, "before": "reply"}),
    Item("tells_day", check={"reply_states": {"from": day}}, depends_on=["looks_up_first"], weight=2),
    Item("calls_little", check={"at_most": 2}, depends_on=["looks_up_first"]),
    name="support",
)

if __name__ == "__main__":
    graph = watch(build(), support, store="sqlite:///embed.db")
    for thread, words in [
        ("ann", "Where is order 7?"),
        ("ben", "Where is order 8?"),
        ("cy", "Say quickly: where is order 9?"),
    ]:
        graph.invoke({"messages": [("user", words)]}, {"configurable": {"thread_id": thread}})
    flush()  # scoring goes on in the background; a service has no need to wait for it

    store = SQLStore("sqlite:///embed.db")
    rewards = {
        trace.id: score.reward
        for trace in store.traces()
        if (score := store.score(trace.id)) and score.reward is not None
    }
    print(rewards)
    print(f"mean reward {sum(rewards.values()) / len(rewards):.2f} over {len(rewards)} dialogues")
