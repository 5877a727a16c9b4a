"""Recorded dialogues replayed: every call is answered from the recording, no simulator is asked, and what the agent is
told is byte for byte what it was told then. Prints one JSON line.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_replay [FILE]

FILE is a tau-bench result file (default: the 100 dialogues that CM2_TEST_DATA names, else six of our own). Each
dialogue is compiled into a task, and an agent that says what the recorded one said runs on it with `tools="hybrid"` and
a simulator that counts what it is asked. `with_placeholders` is the same once more with personal data replaced, in the
agent's words too."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from cm2_agent.datasets import Redactor, task_from_trace, unfit
from cm2_agent.graphs import agent
from cm2_agent.graphs.conversation_setup import RolloutLimits
from cm2_agent.graphs.tools.declared import declared
from cm2_agent.importers import Imported, read_recordings
from cm2_agent.runner.run import run
from cm2_agent.types.task import Task
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from cm2_agent.types.trace import Trace
from tests.importers.recordings import dialogues


class Recites(BaseChatModel):
    """Says the n-th recorded message when n were said, and takes its leave where the recording ended on a tool's
    answer."""

    said: list[Any]

    @property
    def _llm_type(self) -> str:
        return "recites"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        number = sum(isinstance(message, AIMessage) for message in messages)
        said = self.said[number].model_copy() if number < len(self.said) else AIMessage("Goodbye.")
        return ChatResult(generations=[ChatGeneration(message=said)])


class Counts:
    """A simulator that answers nothing worth having, and knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ToolRequest] = []

    async def answer(self, call: ToolRequest, log: CallLog) -> ToolAnswer:
        self.asked.append(call)
        return ToolAnswer(content="simulated", backend="simulate")


def recited(trace: Trace, redactor: Redactor | None) -> list[AIMessage]:
    """The assistant's messages; the ids of calls are numbered through, since recordings may repeat them."""

    def plain(value: Any) -> Any:
        return value if redactor is None else redactor.redact_json(value)

    found = []
    for step in trace.steps:
        calls: list[Any] = [
            {"name": call.name, "args": plain(call.arguments), "id": f"{step.number}-{place}", "type": "tool_call"}
            for place, call in enumerate(step.message.tool_calls)
            if isinstance(call.arguments, dict)
        ]
        found.append(AIMessage(content=plain(step.message.text), tool_calls=calls))
    return found


def tool_results(trace: Trace) -> list[Any]:
    """What the agent was told by its tools, in order."""
    return [response.response for step in trace.steps for response in step.responses]


async def again(traces: list[Trace], redactor: Redactor | None) -> dict[str, Any]:
    """The dialogues, replayed."""
    tasks: dict[str, tuple[Task, Trace]] = {}
    for trace in traces:
        task = task_from_trace(trace, redactor=redactor)
        tasks.setdefault(task.id, (task, trace))
    simulator = Counts()

    def graph(task: Task) -> Any:
        return agent(Recites(said=recited(tasks[task.id][1], redactor)), declared(task.tools))

    graphs = {name: graph(task) for name, (task, _) in tasks.items()}
    answered: Counter[str] = Counter()
    calls = equal = messages = 0
    listed = [task for task, _ in tasks.values()]
    began = time.process_time()
    async for trace, _ in run(
        lambda task: graphs[task.id],
        listed,
        tools="hybrid",
        simulator=lambda task: simulator,
        limits=RolloutLimits(max_steps=60),
    ):
        assert trace.failure is None, trace.failure
        answered.update(str(tool.backend) for run_ in trace.runs for tool in run_.tools)
        before = tool_results(tasks[str(trace.task_id)][1])
        wanted = before if redactor is None else [redactor.redact_json(one) for one in before]
        now = tool_results(trace)
        calls += len(now)
        messages += len(wanted)
        equal += sum(one == other for one, other in zip(wanted, now, strict=True))
    return {
        "tasks": len(tasks),
        "calls": calls,
        "byte_equal": equal,
        "recorded_messages": messages,
        "answered": dict(answered),
        "simulator_calls": len(simulator.asked),
        "cpu_ms_a_dialogue": round(1000 * (time.process_time() - began) / len(tasks), 2),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.file or dialogues(Path(folder))
        traces = [record.trace for record in read_recordings("tau-bench", path) if isinstance(record, Imported)]
    fit = [trace for trace in traces if unfit(trace) is None]
    as_it_was = await again(fit, None)
    replaced = await again(fit, Redactor())
    found = {
        "bench": "replay",
        "dialogues": len(traces),
        "unfit": len(traces) - len(fit),
        **as_it_was,
        "with_placeholders": replaced,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
