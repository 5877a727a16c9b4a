"""Score: dialogues recorded elsewhere, a checklist in YAML with a function in Python, and which items fail.

The dialogues below are in the chat format that most logs can be turned into; `cm2 import openai FILE --store URL` and
`cm2 score CHECKLIST.yaml --checks MODULE --store URL` do the same from the command line. Nothing here asks a judge or
needs a key.

You should see: mean reward 0.62 over 2 dialogues
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

from cm2_agent import Imported, SQLStore, View, load_checklist, read_recordings, score_traces


def call(name: str, arguments: dict[str, str]) -> dict[str, object]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


CHATS = [
    [
        {"role": "user", "content": "Please cancel order 4711."},
        call("get_order", {"order_id": "4711"}),
        {"role": "tool", "tool_call_id": "1", "content": '{"status": "open", "price": 30}'},
        call("cancel_order", {"order_id": "4711"}),
        {"role": "tool", "tool_call_id": "1", "content": '{"status": "cancelled"}'},
        {"role": "assistant", "content": "Order 4711 is cancelled, and 30 come back to you."},
    ],
    [
        {"role": "user", "content": "Please cancel order 4712."},
        call("cancel_order", {"order_id": "4712"}),
        {"role": "tool", "tool_call_id": "1", "content": '{"status": "cancelled"}'},
        {"role": "assistant", "content": "Done."},
    ],
]

CHECKLIST = """
name: cancelling
items:
  - id: looks_up_first
    check: {called: get_order, before: cancel_order}
  - id: cancels
    check: {called: cancel_order, with: {order_id: {from: user}}}
  - id: tells_price
    check: tells_price            # the function below; YAML never imports code
    depends_on: [looks_up_first]
  - id: no_errors
    check: {no_tool_error: true}
    depends_on: [looks_up_first]  # else an agent that does nothing is paid for it
"""


def tells_price(view: View) -> bool:
    "The customer is told what get_order says the order cost."
    return any(str(json.loads(order)["price"]) in view.reply for order in view.results("get_order"))


def stored(url: str) -> SQLStore:
    """The dialogues above, imported into a store."""
    Path("chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS), encoding="utf-8")
    store = SQLStore(url)
    # The format does not mark failed calls: the pattern says how this desk's errors read.
    for record in read_recordings("openai", "chats.jsonl", error_pattern="^(error|not found)"):
        if isinstance(record, Imported):
            for run in record.trace.runs:
                store.save_run(run)
    return store


async def score(store: SQLStore) -> None:
    checklist = load_checklist("cancelling.yaml", {"tells_price": tells_price})
    rewards: list[float] = []
    failed: Counter[str] = Counter()
    async for _, found in score_traces(store.traces(), checklist, store=store):
        failed.update(verdict.item for verdict in found.verdicts if verdict.value is False)
        if found.reward is not None:
            rewards.append(found.reward)
    print("failed:", dict(failed))
    print(f"mean reward {sum(rewards) / len(rewards):.2f} over {len(rewards)} dialogues")


if __name__ == "__main__":
    Path("cancelling.yaml").write_text(CHECKLIST, encoding="utf-8")
    asyncio.run(score(stored("sqlite:///score.db")))
