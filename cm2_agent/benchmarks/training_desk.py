"""TrainingDesk: a bundled environment that policies can begin from nothing and be compared on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from langchain_core.tools import BaseTool
from langgraph.prebuilt.tool_node import INVALID_TOOL_NAME_ERROR_TEMPLATE
from pydantic import ValidationError

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""


class Tasks(Protocol):
    """Makes `count` tasks of `turns` user messages; another seed draws others."""

    def __call__(self, seed: int, turns: int, count: int) -> list[Task]: ...


class ColdStarts(Protocol):
    """Makes the policy of a seed at one of the desk's `starts` and saves it in `out`; `steps` are those of
    each of its parts, where it is to take less than it does by default."""

    def __call__(
        self,
        out: Path,
        *,
        turns: int,
        start: str,
        seed: int,
        steps: int | None = None,
        progress: Progress | None = None,
    ) -> Path: ...


class Answer(NamedTuple):
    """What the agent reads of a call: `failed` where that is an error, `ran` where a tool was executed at all."""

    text: str
    failed: bool = False
    ran: bool = True


@dataclass(frozen=True, kw_only=True)
class TrainingDesk:
    """An agent, its world, its tasks, its checklist and its cold starts.

    Args:
        name: the desk's.
        graph: makes the agent of a chat model, a compiled LangGraph graph.
        tools: the tools that it offers.
        actions: what each tool does, called as `action(world, **arguments)`; what it raises is an answer of
            `tool_error`.
        tool_error: what the agent reads where a call fails.
        max_calls: model calls for one user message, after which the graph ends the turn.
        open: opens a fresh world for a dialogue of a task.
        verify: the outcomes of a finished dialogue, `success` among them, by the world as it was left.
        checklist: what a dialogue is worth, turn by turn.
        training: the tasks that policies are trained on.
        heldout: tasks that share no entity with them.
        starts: the names of the cold starts.
        cold_start: makes a policy.
    """

    name: str
    graph: Callable[[Any], Any]
    tools: Sequence[BaseTool]
    actions: Mapping[str, Callable[..., str]]
    tool_error: str
    max_calls: int
    open: Callable[[Task], AbstractContextManager[Any]]
    verify: Callable[[Task, Any, Trace], Mapping[str, float | None]]
    checklist: Checklist
    training: Tasks
    heldout: Tasks
    starts: Sequence[str]
    cold_start: ColdStarts

    def call(self, world: Any, name: str, arguments: Mapping[str, Any]) -> Answer:
        """What LangGraph's tool node would answer to a call in this world."""
        tool = next((tool for tool in self.tools if tool.name == name), None)
        if tool is None:
            names = ", ".join(tool.name for tool in self.tools)
            text = INVALID_TOOL_NAME_ERROR_TEMPLATE.format(requested_tool=name, available_tools=names)
            return Answer(text, failed=True, ran=False)
        schema: Any = tool.tool_call_schema
        try:
            given = schema.model_validate(arguments)
        except ValidationError:
            return Answer(self.tool_error, failed=True, ran=False)
        known = {key: getattr(given, key) for key in schema.model_fields if key in arguments}
        try:
            return Answer(self.actions[name](world, **known))
        except Exception:  # the graph's tool node answers whatever a tool raises so
            return Answer(self.tool_error, failed=True)
