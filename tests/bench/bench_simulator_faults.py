"""What a failing simulator does to a run: a recorded ToolError and a NULL reward for its dialogue, nothing for any
other. Prints one JSON line.

    python -m tests.bench.bench_simulator_faults [--dialogues 20]

So many dialogues for each kind of fault, and as many healthy ones among them, run together over real HTTP against a
simulator that fails each dialogue in its own way. `wrong` counts dialogues that did not end as they should: it has to
be 0."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool

from cm2_agent.graphs.backends.simulate import SimulatedTools
from cm2_agent.llm.providers import openai_model
from cm2_agent.runner.run import run
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import Task
from tests.chat_server import ChatServer, Fault, last_message
from tests.tracing import apps

OUTPUT = {
    "type": "object",
    "properties": {"value": {"type": "integer"}},
    "required": ["value"],
    "additionalProperties": False,
}
LOOK = ToolSpec(name="look", description="Look a key up.", output=OUTPUT, reads=True)
HEALTHY = {"result": {"value": 7}, "error": None}
FAULTS: Mapping[str, Any] = {
    "malformed JSON": '{"result": {"value": 7',
    "prose": "The value is seven.",
    "empty": "",
    "a list": "[]",
    "null": "null",
    "no result": {"error": None},
    "wrong type": {"result": {"value": "seven"}, "error": None},
    "missing field": {"result": {}, "error": None},
    "extra field": {"result": {"value": 7, "note": "x"}, "error": None},
    "wrong shape": {"result": [1, 2], "error": None},
    "NaN": '{"result": {"value": NaN}, "error": null}',
    "cut off": Fault(text='{"result": {"value": 7}, "error": null}', finish="length"),
    "refusal": Fault(refusal="I cannot help with that."),
    "time-out": Fault(text=json.dumps(HEALTHY), delay=1.0),
    "server error": Fault(status=500, body="{}"),
    "rate limit": Fault(status=429, body="{}"),
    "dropped connection": Fault(drop=True),
    "not HTTP JSON": Fault(body="<html>busy</html>"),
}
CHECKLIST = Checklist(
    Item("looked", check={"called": "look"}), Item("tells", check={"reply_matches": "7"}), name="faults"
)


def answer(body: Mapping[str, Any]) -> Any:
    """The reply that the dialogue's own words ask for."""
    kind = re.search(r"Fail by: ([^.]+)\.", last_message(body))
    return HEALTHY if kind is None else FAULTS[kind[1]]


def desk() -> Any:
    """An agent that looks a key up, and says what it found; it handles every error of a tool, as many apps do."""

    def look(key: int) -> dict[str, int]:
        """Look a key up."""
        raise AssertionError("the real tool was called")

    return apps.agent(
        apps.ScriptedModel(script=[apps.calls(1), AIMessage("It is 7.")]), [StructuredTool.from_function(look)]
    )


async def measure(dialogues: int, store: SQLStore, kinds: tuple[str, ...] = tuple(FAULTS)) -> dict[str, Any]:
    """The run, and how its dialogues ended."""
    tasks = [
        Task(
            id=f"{kind}-{healthy}", turns=("Look 1 up." if healthy else f"Look 1 up. Fail by: {kind}.",), tools=(LOOK,)
        )
        for kind in kinds
        for healthy in (False, True)
    ]
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    with ChatServer(answer, keep=False) as server:
        model = openai_model(server.base_url, "stub")

        def simulator(task: Task) -> SimulatedTools:
            timeout = 0.3 if "time-out" in task.turns[0] else 60.0  # a busy machine is no fault
            return SimulatedTools(model, task=task, timeout=timeout, retries=1, re_asks=1, backoff=0.01)

        run_ = run(
            desk(), tasks, tools="simulate", simulator=simulator, group=dialogues, checklist=CHECKLIST, store=store
        )
        async for trace, score in run_:
            healthy = str(trace.task_id).endswith("-True")
            (tool,) = trace.runs[0].tools
            assert score is not None
            if healthy:
                right = (
                    trace.failure is None and score.reward == 1.0 and tool.backend == "simulate" and tool.error is None
                )
            else:
                right = (
                    trace.failure is not None
                    and trace.failure.kind == "ToolError"
                    and score.reward is None
                    and bool(tool.error)
                    and tool.result is None
                )
            ended["healthy" if healthy else "ToolError"] += 1
            if not right:
                wrong.append(f"{trace.task_id}: {trace.failure}, reward {score.reward}, {tool.error}")
        calls = server.calls
    stored = [trace for trace in store.traces() if trace.failure is not None]
    for one in wrong[:5]:
        print(one)
    return {
        "kinds": len(kinds),
        "dialogues": sum(ended.values()),
        "ended": dict(ended),
        "wrong": len(wrong),
        "stored_failures": len(stored),
        "simulator_requests": calls,
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=20)
    with SQLStore("sqlite://") as store:
        print(json.dumps({"bench": "simulator_faults", **await measure(parser.parse_args().dialogues, store)}))


if __name__ == "__main__":
    asyncio.run(main())
