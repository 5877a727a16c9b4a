"""From Langfuse: what a team has there becomes a scored store, tasks, and a first policy of its own.

A furniture shop's agent ran on a hosted model and was traced by Langfuse. `langfuse.jsonl` is what `GET
/api/public/v2/observations` returns, an observation a line (it is written here, by a script that plays the model and is
hasty with every second customer; put your own export in its place). It is imported, the checklist is tried on
counterfeits, every dialogue is scored, and the good ones become tasks with their recorded calls.

GRPO refuses these dialogues, and says why: each happened once, so that there is nothing to compare it with (and a
hosted model gives no token ids). Words can be imitated: all of them, or those that the checklist paid in full. Both
policies are small ones, made from nothing, and are measured on customers that neither has seen, with no tool but the
recorded calls. From here on a policy's own rollouts of the tasks train it: 03_train.py.

The same from the command line, and the verdicts back on Langfuse's traces:

    cm2 import langfuse.jsonl
    cm2 lint desk.yaml
    cm2 score desk.yaml
    cm2 tasks from-traces tasks.jsonl --held-out held.jsonl --min-score 1
    cm2 train --rows-only
    cm2 train --algorithm sft --set select=1.0 --model start --out policy
    cm2 verdicts send langfuse

It takes 70 seconds of one core, and took six minutes where both cores were kept busy by something else.

You should see: mean reward on held-out tasks: imitation of all 0.33, of what was paid in full 0.86
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cm2_agent import (
    GRPO,
    SFT,
    Checklist,
    Imported,
    LocalChatModel,
    Redactor,
    SQLStore,
    Task,
    TrainError,
    load_checklist,
    read_recordings,
    run,
    save_tasks,
    score_traces,
    task_from_trace,
)
from cm2_agent.graphs import agents
from cm2_agent.models import word_tokenizer
from cm2_agent.quickstart import open_desk, training_tasks
from cm2_agent.rewards import lint
from cm2_agent.trainers import copy_drill, small_policy

CHECKLIST = """
name: desk
items:
  - id: looks_up
    check: {called: get_order, with: {order_id: {from: user}}, before: reply}
  - id: tells_status
    check: {reply_states: {from: {tool: get_order, pattern: 'status (\\w+)'}}}
    depends_on: [looks_up]
  - id: tells_day
    check: {reply_states: {from: {tool: get_order, pattern: 'day (\\d+)'}}}
    depends_on: [looks_up]
"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_order",
            "description": "Look up an order: its item, status, day of delivery and price.",
            "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
        },
    }
]
# The fixed parts of calls and of what the tool answers: a token each for a model as small as this.
FRAMES = ['{"name": "', '", "arguments": {"order_id": "', '"}}', "item ", ", status ", ", day ", ", price "]
SYSTEM = "You answer customers of a furniture shop. Look up the order before you answer."
Row = dict[str, Any]


def conversation(question: str, order: str, hasty: bool) -> list[Row]:
    """One customer with the hosted model: a look at the order and what it says, or a guess."""
    messages: list[Row] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    if hasty:
        return [*messages, {"role": "assistant", "content": "It should arrive soon."}]
    desk = open_desk()
    found = desk.get_order(order)
    desk.close()
    facts = dict(part.split(" ", 1) for part in found.split(", "))
    function = {"name": "get_order", "arguments": json.dumps({"order_id": order})}
    call = {"id": f"call_{order}", "type": "function", "function": function}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    answered = {"role": "tool", "tool_call_id": f"call_{order}", "content": found}
    reply = {"role": "assistant", "content": f"Here it is: status {facts['status']}, day {facts['day']}."}
    return [*messages, called, answered, reply]


def observations(messages: Sequence[Row], trace: str, customer: str, begun: datetime) -> Iterator[Row]:
    """A conversation as Langfuse's observations: the agent, and below it a generation an answer and a span a tool."""
    second = iter(range(1000))

    def row(kind: str, name: str, asked: Any, answered: Any, **more: Any) -> Row:
        number = next(second)
        started, ended = begun + timedelta(seconds=number), begun + timedelta(seconds=number + 1)
        return {
            "id": f"{trace[:12]}{number:04x}",
            "traceId": trace,
            "projectId": "shop",
            "parentObservationId": None if kind == "AGENT" else f"{trace[:12]}{0:04x}",
            "isRootObservation": kind == "AGENT",
            "type": kind,
            "name": name,
            "traceName": "order desk",
            "userId": customer,
            "environment": "production",
            "level": "DEFAULT",
            "startTime": started.isoformat().replace("+00:00", "Z"),
            "endTime": ended.isoformat().replace("+00:00", "Z"),
            "input": asked,
            "output": answered,
            "metadata": {},
            **more,
        }

    yield row("AGENT", "order desk", {"messages": messages[1:2]}, {"messages": messages[-1:]})
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = {"messages": messages[:place], "tools": TOOLS}
            more = {"model": "hosted", "modelParameters": {"temperature": 1.0}, "usageDetails": {"input": 90}}
            yield row("GENERATION", "chat", asked, message, **more)
        elif message["role"] == "tool":
            called = messages[place - 1]["tool_calls"][0]["function"]
            yield row("TOOL", called["name"], json.loads(called["arguments"]), message["content"])


def export(path: Path, customers: int) -> None:
    """Langfuse's export of the shop."""
    rng = random.Random(0)
    begun = datetime(2026, 11, 2, 8, tzinfo=UTC)
    with path.open("w", encoding="utf-8") as lines:
        for number, task in enumerate(training_tasks(0)[:customers]):
            order = str(task.metadata["order_id"])
            question = rng.choice(["Where is order {}?", "When will order {} arrive?", "What about order {}?"])
            messages = conversation(question.format(order), order, hasty=rng.random() < 0.5)
            trace = f"{rng.getrandbits(128):032x}"
            for one in observations(messages, trace, f"customer-{number}", begun + timedelta(minutes=number)):
                lines.write(json.dumps(one) + "\n")


def imported(path: Path, url: str) -> SQLStore:
    """`cm2 import`: the format is seen in the file."""
    store = SQLStore(url)
    for record in read_recordings(None, path):
        if not isinstance(record, Imported):
            raise SystemExit(f"{path}: {record}")
        store.save_trace(record.trace)
    return store


async def scored(store: SQLStore, checklist: Checklist) -> dict[str, float]:
    """`cm2 score`: the reward of each dialogue."""
    rewards = {}
    async for trace, score in score_traces(store.traces(), checklist, store=store):
        assert score.reward is not None
        rewards[trace.id] = score.reward
    return rewards


def refusal(store: SQLStore, checklist: Checklist, start: Path) -> str:
    """What GRPO says to dialogues of a hosted model."""
    try:
        GRPO(start, "grpo", steps=1).train(store.groups(checklist=checklist))
    except TrainError as error:
        return str(error)
    raise SystemExit("GRPO trained on dialogues without token ids")


def fresh_model(folder: Path, store: SQLStore, drill: int) -> Path:
    """A model of 0.4 M parameters that can copy the words of the export and knows nothing else."""
    dialogues, facts = [], set[str]()
    for trace in store.traces():
        dialogues.append([{"role": message.role, "content": message.text} for message in trace.messages])
        answers = [str(tool.result) for run in trace.runs for tool in run.tools]
        asked = [message.text for message in trace.messages if message.role == "user"]
        facts |= set(re.findall(r"[A-Z]+(?=-)|[0-9]+", " ".join([*answers, *asked])))
        facts |= set(re.findall(r"(?<=status )[a-z]+", " ".join(answers)))
    words = word_tokenizer(dialogues, tools=TOOLS, words=[*sorted(facts), *FRAMES])
    model = small_policy(words)
    copy_drill(model, words, sorted(facts), steps=drill)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


async def mean_reward(policy: Path, tasks: Sequence[Task], checklist: Checklist) -> float:
    """`cm2 run --tools replay`: the policy on tasks, each with the calls that were recorded."""
    model = LocalChatModel.load(policy, max_tokens=48, max_batch=64)
    results = run(agents(model), tasks, group=4, checklist=checklist, tools="replay", lockstep=True, concurrency=256)
    rewards = [score.lower async for _, score in results if score is not None and score.lower is not None]
    return sum(rewards) / len(rewards)


def main(customers: int, steps: int, drill: int) -> None:
    begun = time.monotonic()
    Path("desk.yaml").write_text(CHECKLIST, encoding="utf-8")
    checklist = load_checklist("desk.yaml")
    export(Path("langfuse.jsonl"), customers)
    store = imported(Path("langfuse.jsonl"), "sqlite:///shop.db")

    print("lint:", [str(one) for one in asyncio.run(lint(checklist, tools=["get_order"])).findings] or "no finding")
    rewards = asyncio.run(scored(store, checklist))
    print(f"{len(rewards)} dialogues of production: mean reward {sum(rewards.values()) / len(rewards):.2f}")

    good = [trace for trace in store.traces() if rewards[trace.id] == 1]
    redactor = Redactor()
    tasks = [task_from_trace(trace, checklist=checklist, redactor=redactor) for trace in good]
    held_out = {trace.id for trace in good[::5]}
    save_tasks(tasks[::5], "held.jsonl")
    save_tasks([task for number, task in enumerate(tasks) if number % 5], "tasks.jsonl")
    print(f"{len(tasks)} tasks, {len(held_out)} of them held out")

    start = fresh_model(Path("start"), store, drill)
    print("GRPO:", refusal(store, checklist, start))
    shape = {"lr_scheduler_type": "cosine", "adam_beta2": 0.98}
    settings: Row = {"steps": steps, "learning_rate": 2e-3, "warmup_steps": 20, "args": shape}
    known = [trace.id for trace in store.traces() if trace.id not in held_out]
    everything = SFT(start, "imitation", **settings).train(store.traces(ids=known))
    paid = SFT(start, "policy", **settings).train(store.traces(ids=[one for one in known if rewards[one] == 1]))
    found = [asyncio.run(mean_reward(policy, tasks[::5], checklist)) for policy in (everything, paid)]
    print(f"{time.monotonic() - begun:.0f} seconds")
    print(f"mean reward on held-out tasks: imitation of all {found[0]:.2f}, of what was paid in full {found[1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="From Langfuse's export to a scored store, tasks and a first policy.")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each imitation, of 16 rows each")
    parser.add_argument(
        "--drill", type=int, default=120, help="optimizer steps in which the fresh model learns to copy"
    )
    parser.add_argument("--customers", type=int, default=600, help="customers in the export")
    given = parser.parse_args()
    main(given.customers, given.steps, given.drill)
