"""A switched app and stand-ins for its backends: tools that note their calls, a simulator, a recording, a fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from cm2_agent.errors import ToolError
from cm2_agent.graphs.backends.backends import TOOLS, Backends
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.run import Run
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from tests.tracing import apps

CALLED: list[Any] = []


@tool
def look(key: int) -> str:
    """Look a key up."""
    CALLED.append(key)
    return f"real {key}"


@tool
async def write(key: int, value: str = "x") -> str:
    """Write a key."""
    CALLED.append((key, value))
    return "written"


class Invents:
    """A simulator that counts what it is asked, or raises what it is given."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[ToolRequest] = []

    async def answer(self, call: ToolRequest, log: CallLog) -> ToolAnswer:
        self.asked.append(call)
        said = self.answers.pop(0) if self.answers else f"invented {call.arguments.get('key')}"
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, ToolAnswer) else ToolAnswer(content=said, backend="simulate")


class Recorded:
    """Replays from a mapping of keys."""

    def __init__(self, known: Mapping[int, str]) -> None:
        self.known = known

    def find(self, call: ToolRequest, log: CallLog) -> ToolAnswer | None:
        said = self.known.get(call.arguments.get("key", -1))
        return None if said is None else ToolAnswer(content=said, backend="replay")

    async def answer(self, call: ToolRequest, log: CallLog) -> ToolAnswer:
        found = self.find(call, log)
        if found is None:
            raise ToolError(f"no recording of {call.tool.name}")
        return found


class Fault:
    """One fault for every call."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def draw(self, call: ToolRequest, log: CallLog) -> str | None:
        return self.kind

    def faulty(self, fault: str, call: ToolRequest, answer: ToolAnswer | None) -> ToolAnswer:
        if answer is None:
            return ToolAnswer(content=f"{call.tool.name}: {fault}", error=True, fault=fault)
        return ToolAnswer(content="", backend=answer.backend, fault=fault)


def says(*calls: tuple[str, Mapping[str, Any]]) -> AIMessage:
    asked: list[Any] = [
        {"name": name, "args": dict(args), "id": f"c{i}", "type": "tool_call"} for i, (name, args) in enumerate(calls)
    ]
    return AIMessage(content="", tool_calls=asked)


def app(*script: AIMessage, tools: Any = (look, write), **options: Any) -> Any:
    return apps.agent(apps.ScriptedModel(script=[*script, AIMessage("done")]), tools, **options)


async def driven(graph: Any, backends: Backends | None, **config: Any) -> tuple[list[ToolMessage], list[Run]]:
    """The tool messages and the runs of one question."""
    runs: list[Run] = []
    configurable = {"thread_id": "t"} if backends is None else {"thread_id": "t", TOOLS: backends}
    asked: Any = {"configurable": configurable, "callbacks": [capture(runs.append)], **config}
    state = await graph.ainvoke({"messages": [HumanMessage("go")]}, asked)
    return [message for message in state["messages"] if isinstance(message, ToolMessage)], runs
