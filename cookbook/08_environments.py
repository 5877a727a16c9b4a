"""Every dialogue becomes an environment: two from production are compiled into tasks and run eight times each, with no
real tool.

What production recorded is replayed; what it never asked is answered by a simulator (a script stands in for the
language model here); the customer's address is a placeholder everywhere. `cm2 tasks from-traces OUT` and `cm2 run OUT
--tools hybrid --simulator MODEL --group 8` do the same.

You should see: 16 rollouts of 2 dialogues: 16 calls replayed, 8 simulated, 0 real; mean reward 0.75
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from cm2_agent import Checklist, Item, Redactor, SQLStore, flush, run, task_from_trace, watch
from cm2_agent.graphs import FunctionTools, agent

REAL: list[str] = []


def find_customer(email: str) -> dict[str, int]:
    """Find a customer's order by e-mail address."""
    REAL.append("find_customer")
    return {"order_id": 7 if email.startswith("ann") else 8}


def get_order(order_id: int) -> dict[str, str]:
    """Look an order up."""
    REAL.append("get_order")
    return {"status": "shipped", "arrives": f"2026-05-2{order_id}"}


class Clerk(BaseChatModel):
    """Finds the customer, looks the order up and tells the date. A `hasty` one guesses the order's number every other
    time."""

    hasty: bool = False
    turns: Any = None

    @property
    def _llm_type(self) -> str:
        return "clerk"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        answers = [json.loads(message.text) for message in messages if isinstance(message, ToolMessage)]
        if not answers:
            guesses, email = self.hasty and next(self.turns) % 2 == 1, messages[-1].content.split()[-1]
            reply = self._calls("get_order", order_id=99) if guesses else self._calls("find_customer", email=email)
        elif "order_id" in answers[-1]:
            reply = self._calls("get_order", order_id=answers[-1]["order_id"])
        else:
            reply = AIMessage(f"It was {answers[-1]['status']} and arrives on {answers[-1]['arrives']}.")
        return ChatResult(generations=[ChatGeneration(message=reply)])

    def _calls(self, name: str, **arguments: Any) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"{name}-1", "type": "tool_call"}])


def simulator(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """In place of a language model that reads the schema, the recorded calls and the dialogue."""
    return ModelResponse(
        parts=[TextPart(json.dumps({"result": {"status": "open", "arrives": "2026-06-01"}, "error": None}))]
    )


support = Checklist(
    Item("finds", check={"called": "find_customer", "with": {"email": {"from": "user"}}}),
    Item("tells_date", check={"reply_matches": r"\d{4}-\d{2}-\d{2}"}),
    name="support",
)
tools = FunctionTools(find_customer, get_order)


async def main() -> None:
    store = SQLStore("sqlite:///cm2.db")
    production = watch(agent(Clerk(), tools), support, store="sqlite:///cm2.db")
    for name in ("ann", "bob"):
        asked = {"messages": [HumanMessage(f"Where is my order? I am {name}@example.net")]}
        await production.ainvoke(asked, {"configurable": {"thread_id": name}})
    flush()
    redactor = Redactor()
    tasks = [task_from_trace(trace, checklist=support, redactor=redactor) for trace in store.traces()]
    print("the task says:", tasks[0].turns[0], "and recorded", len(tasks[0].recorded), "calls")
    REAL.clear()
    answered: Counter[str | None] = Counter()
    rewards = []
    policy = agent(Clerk(hasty=True, turns=itertools.count()), tools)
    rollouts = run(
        policy, tasks, tools="hybrid", simulator=FunctionModel(simulator), group=8, store=store, concurrency=1
    )
    async for trace, score in rollouts:
        answered.update(call.backend for one in trace.runs for call in one.tools)
        assert score is not None
        assert score.reward is not None
        rewards.append(score.reward)
    made = f"{answered['replay']} calls replayed, {answered['simulate']} simulated, {len(REAL)} real"
    print(f"{len(rewards)} rollouts of {len(tasks)} dialogues: {made}; mean reward {sum(rewards) / len(rewards):.2f}")


if __name__ == "__main__":
    asyncio.run(main())
