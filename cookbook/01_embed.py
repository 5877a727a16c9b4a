"""Embed: watch an agent that is not ours, and see every dialogue scored.

The graph below is written against LangGraph alone. `watch` puts a traced graph in its place; three customers are served, one of them by
guessing. Its model is scripted, so that the recipe needs no key: put your own in.

You should see: mean reward 0.75 over 3 dialogues
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

from cm2_agent import Checklist, Item, SQLStore, View, watch


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
            return AIMessage(f"It arrives on {json.loads(str(last.content))['arrives']}.")
        if "quickly" in str(last.content):
            return AIMessage("It arrives on 2026-05-20.")
        order = str(last.content).rstrip("?").split()[-1]
        return AIMessage("", tool_calls=[ToolCall(name="get_order", args={"order_id": order}, id="1")])


def build() -> Any:
    model = Clerk()
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([get_order]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


def tells_day(view: View) -> bool:
    "The customer is told the day that get_order returned."
    return any(result["arrives"] in view.reply for result in view.results("get_order"))


support = Checklist(
    Item("looks_up_first", check={"called": "get_order", "with": {"order_id": {"from": "user"}}, "before": "reply"}),
    Item("tells_day", check=tells_day, depends_on=["looks_up_first"], weight=2),
    Item("calls_little", check={"at_most": 2}),
    name="support",
)

if __name__ == "__main__":
    rewards: list[float] = []
    graph = watch(build(), support, store="sqlite:///embed.db", sinks=[lambda trace, score: print(trace.id, score.reward)])
    for thread, words in [("anna", "Where is order 7?"), ("ben", "Where is order 8?"), ("carl", "Say quickly: where is order 9?")]:
        graph.invoke({"messages": [("user", words)]}, {"configurable": {"thread_id": thread}})

    store = SQLStore("sqlite:///embed.db")
    rewards = [score.reward for trace in store.traces() if (score := store.score(trace.id)) and score.reward is not None]
    print(f"mean reward {sum(rewards) / len(rewards):.2f} over {len(rewards)} dialogues")
