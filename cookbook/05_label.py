"""Label: a good recorded dialogue becomes a checklist, tried on corrupted copies of itself before anyone is scored by
it.

`cm2 checklists write --model openai:gpt-5-mini --store URL` does the same with a hosted model. Here a script stands in
for it, so that nothing needs a key. It writes two sound items, one that the dialogue does not satisfy and one that
points at words nobody said, and corrects one of these when it gets the failures. The questions are tried by a judge
where one is named (`--judge`); without one they are accepted and counted.

You should see: 3 items kept, 1 rewritten, 1 dropped; the sloppy dialogue scores 0.33
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from cm2_agent import Message, Run, ToolCall, ToolCallResponse, Trace, dump_checklist
from cm2_agent.rewards import ChecklistScorer, ChecklistWriter


def dialogue(name: str, *messages: Message) -> Trace:
    return Trace.of(Run(id=name, messages=messages))


def asked(call: str, answer: dict[str, Any]) -> list[Message]:
    step = Message.of("assistant", calls=[ToolCall(id=call, name=call, arguments={"order_id": 7})])
    return [step, Message(role="tool", parts=(ToolCallResponse(id=call, response=answer),))]


USER = Message.of("user", "Please cancel order 7.")
REFERENCE = dialogue(
    "good",
    USER,
    *asked("get_order", {"status": "open", "price": 30}),
    *asked("cancel_order", {"status": "cancelled"}),
    Message.of("assistant", "Order 7 is cancelled, and 30 come back to you."),
)
SLOPPY = dialogue("sloppy", USER, *asked("cancel_order", {"status": "cancelled"}), Message.of("assistant", "Done."))


def item(id: str, question: str, check: dict[str, Any], step: int, snippet: str) -> dict[str, Any]:
    source = "assistant.reply" if step == 2 else "assistant.tool_calls"
    evidence = [{"turn": 0, "step": step, "from": source, "snippet": snippet}]
    return {"id": id, "question": question, "turn": 0, "check": check, "evidence": evidence}


LOOKS = item(
    "looks_up", "Is order 7 looked up first?", {"called": "get_order", "before": "cancel_order"}, 0, "get_order"
)
CANCELS = item(
    "cancels", "Is order 7 cancelled?", {"called": "cancel_order", "with": {"order_id": 7}}, 1, "cancel_order"
)
WRONG = item("tells_price", "Is the customer told what comes back?", {"reply_matches": "30 EUR"}, 2, "30 come back")
INVENTED = item("asks_why", "Is the customer asked why?", {"reply_matches": "why"}, 2, "May I ask why?")
ANSWERS = [[LOOKS, CANCELS, WRONG, INVENTED], [{**WRONG, "check": {"reply_matches": r"\b30\b"}}]]


def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    answer = ANSWERS[sum(isinstance(message, ModelResponse) for message in messages)]
    return ModelResponse(parts=[TextPart(content=json.dumps({"items": answer}))])


async def main() -> None:
    found = await ChecklistWriter(FunctionModel(scripted))(REFERENCE)
    for name, why in found.dropped.items():
        print(f"dropped {name}: {why}")
    if found.checklist is None:
        raise SystemExit(found.reason)
    checklist = found.checklist
    print(dump_checklist(checklist))
    score = await ChecklistScorer(checklist)(SLOPPY)
    print(
        f"{len(checklist.items)} items kept, {len(found.rewritten)} rewritten, {len(found.dropped)} dropped; ", end=""
    )
    print(f"the sloppy dialogue scores {score.reward:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
