"""What the store costs, in CPU-milliseconds: saving a finished dialogue (2 runs, 5 model calls, 3 tool calls, tokens, a
score of 8 verdicts) and fetching it back in groups.

    python tests/bench/bench_store.py [--dialogues 1000] [--url sqlite:///FILE.db]  # one JSON line, the last of stdout

Every call's messages are objects of their own, as capture makes them: nothing is shared but the text.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.run_attributes import GATE, GROUP, ROLLOUT, TASK_ID, TASK_TURNS, TASK_VERSION
from cm2_agent.types.score import Score, TurnScore, Verdict

TOOLS = ("get_order", "refund", "search", "cancel_order")
PARAMETERS = {"type": "object", "properties": {"order_id": {"type": "integer"}}}
GROUP_SIZE = 8


def dialogue(number: int, seed: int = 0) -> tuple[list[Run], Score]:
    """Two user turns: lookup, lookup, reply; lookup, reply."""
    dice = random.Random(f"{seed}:{number}")
    thread, task = f"thread-{number:08d}", number // GROUP_SIZE
    said: list[Message] = [Message.of("system", "You are the order desk. " + "Look things up before you answer. " * 8)]
    tokens = [dice.randrange(800) for _ in range(260)]
    runs = []
    for turn, steps in enumerate((3, 2)):
        start = len(said) if turn else 0
        said.append(Message.of("user", f"Where is order {task}, please? I ask for the time number {turn}."))
        tokens += [dice.randrange(800) for _ in range(20)]
        calls, ran = [], []
        for step in range(steps):
            last = step == steps - 1
            call_id = f"call-{number}-{turn}-{step}"
            asked = (
                ()
                if last
                else (ToolCall(id=call_id, name=TOOLS[step], arguments={"order_id": task, "try": dice.randrange(100)}),)
            )
            output = Message.of(
                "assistant", f"Order {task} arrives on day {dice.randrange(100)}." if last else "", asked
            )
            completion = [dice.randrange(800) for _ in range(30)]
            calls.append(
                ModelCall(
                    span_id=f"{number:08x}{turn}{step}",
                    model="tiny",
                    model_version="v1",
                    input=tuple(Message.from_json(message.to_json()) for message in said),
                    output=output,
                    tools=tuple(
                        ToolSpec(name=name, description=f"What {name} does.", parameters=PARAMETERS) for name in TOOLS
                    ),
                    prompt_ids=tuple(tokens),
                    completion_ids=tuple(completion),
                    logprobs=tuple(-dice.random() for _ in completion),
                    sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 64, "logprobs": "processed"},
                    usage={"input_tokens": len(tokens), "output_tokens": len(completion)},
                    finish_reason="stop",
                    message=len(said) - start,
                    started=number * 1000 + step,
                    ended=number * 1000 + step + 1,
                )
            )
            said.append(output)
            tokens += completion
            for call in asked:
                result = {"order": task, "status": "shipped", "day": dice.randrange(100)}
                said.append(Message(role="tool", parts=(ToolCallResponse(id=call.id, response=result),)))
                tokens += [dice.randrange(800) for _ in range(25)]
                ran.append(
                    ToolRun(
                        span_id=f"t{call_id}",
                        name=call.name,
                        call_id=call.id,
                        arguments=call.arguments,
                        result=result,
                        backend="real",
                    )
                )
        attributes = {
            TASK_ID: f"task-{task}",
            TASK_VERSION: 1,
            TASK_TURNS: 2,
            GROUP: "round-1",
            ROLLOUT: number % GROUP_SIZE,
            GATE: None,
        }
        runs.append(
            Run(
                id=f"run-{number:08d}-{turn}",
                thread=thread,
                messages=tuple(said[start:]),
                calls=tuple(calls),
                tools=tuple(ran),
                attributes=attributes,
                started=number * 1000 + turn,
                ended=number * 1000 + turn + 1,
            )
        )
    turns = tuple(
        TurnScore(
            turn=turn,
            reached=True,
            steps=3 - turn,
            reward=0.5,
            verdicts=tuple(
                Verdict(
                    item=f"item-{item}",
                    value=bool(dice.randrange(2)),
                    weight=0.25,
                    step=1,
                    paid=False,
                    depends_on=(0,) if item else (),
                )
                for item in range(4)
            ),
        )
        for turn in range(2)
    )
    return runs, Score(
        trace_id=thread, reward_version="desk:1", reward=dice.random(), checklist="c" * 64, turns=turns, runs=2
    )


def measure(url: str, count: int) -> dict[str, object]:
    made = [dialogue(number) for number in range(count)]
    with SQLStore(url) as store:
        store.save_dialogue(*dialogue(count + GROUP_SIZE))  # opens the connection, compiles the statements
        cpu, wall = time.process_time(), time.perf_counter()
        for runs, score in made:
            store.save_dialogue(runs, score)
        saved = (time.process_time() - cpu, time.perf_counter() - wall)
        cpu, wall = time.process_time(), time.perf_counter()
        groups = store.groups()
        fetched = (time.process_time() - cpu, time.perf_counter() - wall)
        kept = sum(len(group.rollouts) for group in groups)
        cpu = time.process_time()
        again = sum(store.save_dialogue(runs, score) for runs, score in made)
        repeated = time.process_time() - cpu
    return {
        "dialogues": count,
        "save_cpu_ms": round(saved[0] / count * 1e3, 3),
        "save_wall_ms": round(saved[1] / count * 1e3, 3),
        "repeat_cpu_ms": round(repeated / count * 1e3, 3),
        "new_on_repeat": again,
        "groups": len(groups),
        "rollouts": kept,
        "fetch_cpu_ms": round(fetched[0] / kept * 1e3, 3),
        "fetch_wall_ms": round(fetched[1] / kept * 1e3, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=1000)
    parser.add_argument("--url", help="an empty database; default a temporary SQLite file")
    given = parser.parse_args()
    if given.url:
        print(json.dumps(measure(given.url, given.dialogues)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cm2.db"
        result = measure(f"sqlite:///{path}", given.dialogues)
        print(json.dumps({**result, "kb_per_dialogue": round(path.stat().st_size / 1024 / given.dialogues, 2)}))


if __name__ == "__main__":
    main()
