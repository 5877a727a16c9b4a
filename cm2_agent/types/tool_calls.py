"""Tool calls as backends see them: the request, the answer, and the log of one dialogue's answered calls."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from cm2_agent.types.call_key import call_key
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.task import Task

_READING = re.compile(
    r"(?:^|_)(?:get|list|search|find|look|lookup|read|fetch|check|query|view|show|describe|count|calculate|think|verify|validate)(?:_|$)"
)


def reads_only(tool: ToolSpec) -> bool:
    """Whether calls of the tool change nothing: as it declares (`reads`), else by the verb it begins with; an unknown
    verb is a write."""
    if tool.reads is not None:
        return tool.reads
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", tool.name).lower()
    return _READING.match(words) is not None


@dataclass(frozen=True, kw_only=True)
class ToolRequest:
    """A call that a backend is asked to answer.

    `tool` is the tool as the model saw it and `arguments` what the model wrote; `messages` is the dialogue so far
    (empty for replay, which does not read it), and `task` the task of the dialogue, where there is one.

    >>> from cm2_agent import ToolSpec
    >>> from cm2_agent.graphs import ToolRequest
    >>> ToolRequest(tool=ToolSpec(name="get_order"), arguments={"order_id": 7.0}).key
    'get_order{"order_id":7}'
    """

    tool: ToolSpec
    arguments: Mapping[str, JSON]
    messages: tuple[Message, ...] = ()
    task: Task | None = field(default=None, repr=False, compare=False)

    @cached_property
    def key(self) -> str:
        """The same for structurally equal calls of one tool."""
        return call_key(self.tool.name, self.arguments, self.tool.parameters)


@dataclass(frozen=True, kw_only=True)
class ToolAnswer:
    """What a tool answered, as its message reads: text, or a list of content blocks; `error` marks a failure of the
    tool's own, which the agent sees. `backend` names who answered, `fault` the injected fault that changed it.

    >>> from cm2_agent.graphs import ToolAnswer
    >>> ToolAnswer(content="no order 7", error=True).backend
    'real'
    """

    content: str | list[JSON]
    error: bool = False
    backend: str = "real"
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class CallLogEntry:
    """One answered call. `writes_before` counts the writes that had succeeded before it."""

    request: ToolRequest
    answer: ToolAnswer
    writes_before: int


@dataclass
class CallLog:
    """The answered calls of one dialogue, in the order of their answers.

    >>> from cm2_agent import ToolSpec
    >>> from cm2_agent.graphs import CallLog, ToolAnswer, ToolRequest
    >>> log = CallLog()
    >>> log.add(ToolRequest(tool=ToolSpec(name="cancel_order"), arguments={}), ToolAnswer(content="cancelled"))
    >>> log.writes_before, log.count("cancel_order{}")
    (1, 1)
    """

    entries: list[CallLogEntry] = field(default_factory=list)

    @property
    def writes_before(self) -> int:
        """How many writes have succeeded so far: reads before and after a write may differ."""
        return sum(not reads_only(entry.request.tool) and not entry.answer.error for entry in self.entries)

    @property
    def writes(self) -> tuple[str, ...]:
        """The keys of the successful writes, in order."""
        return tuple(
            entry.request.key for entry in self.entries if not reads_only(entry.request.tool) and not entry.answer.error
        )

    def add(self, request: ToolRequest, answer: ToolAnswer) -> None:
        self.entries.append(CallLogEntry(request=request, answer=answer, writes_before=self.writes_before))

    def count(self, key: str) -> int:
        """How often a call was answered."""
        return sum(entry.request.key == key for entry in self.entries)


__all__ = ["CallLog", "CallLogEntry", "ToolAnswer", "ToolRequest", "reads_only"]
