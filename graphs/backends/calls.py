"""What one dialogue's tools were asked and answered so far; apart from the backends, which all read it: replay to know
what was changed since, simulation to stay true to what it said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolSpec

from .call_key import call_key

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
class Call:
    """A call that a backend is asked to answer: `tool` as the model saw it, `messages` the dialogue so far."""

    tool: ToolSpec
    arguments: Mapping[str, JSON]
    messages: tuple[Message, ...] = ()

    @cached_property
    def key(self) -> str:
        """The same for structurally equal calls of one tool."""
        return call_key(self.tool.name, self.arguments, self.tool.parameters)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a tool answered, as the message tells it: text, or a list of content blocks; `error` where it tells of a
    failure of the tool's own. `backend` says who answered, `fault` which injected fault changed it."""

    content: str | list[JSON]
    error: bool = False
    backend: str = "real"
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    call: Call
    answer: Answer
    epoch: int
    """How many writes had succeeded before the call."""


@dataclass
class Journal:
    """The answered calls of one dialogue, in the order of their answers."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """How many writes have succeeded so far: reads before and after a write may differ."""
        return sum(not reads_only(entry.call.tool) and not entry.answer.error for entry in self.entries)

    @property
    def writes(self) -> tuple[str, ...]:
        """The keys of the successful writes, in order."""
        return tuple(
            entry.call.key for entry in self.entries if not reads_only(entry.call.tool) and not entry.answer.error
        )

    def add(self, call: Call, answer: Answer) -> None:
        self.entries.append(Entry(call=call, answer=answer, epoch=self.epoch))

    def count(self, key: str) -> int:
        """How often a call was answered."""
        return sum(entry.call.key == key for entry in self.entries)


__all__ = ["Answer", "Call", "Entry", "Journal", "reads_only"]
