"""What a dialect reads off one span: a model call, a tool's execution, an agent, or a step that only holds others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolSpec


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Whose span it is: the conversation, the application's ids of user and session, the caller's tags and metadata,
    and the run's `cm2.*` attributes."""

    thread: str | None = None
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    attributes: Mapping[str, JSON] = field(default_factory=dict)


NO_FACTS = Facts()


@dataclass(frozen=True, kw_only=True)
class ChatReading:
    """A model call. `output` is None where the call failed, or its content was not recorded."""

    input: tuple[Message, ...] = ()
    output: Message | None = None
    model: str | None = None
    model_version: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    finish_reason: str | None = None
    prompt_ids: Sequence[int] | None = None
    completion_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    facts: Facts = NO_FACTS


@dataclass(frozen=True, kw_only=True)
class ToolReading:
    """An execution of a tool. `failed`: the result is the text of an error, although the span ended well."""

    name: str
    call_id: str | None = None
    arguments: JSON = None
    result: JSON = None
    failed: bool = False
    backend: str | None = None
    fault: str | None = None
    facts: Facts = NO_FACTS


@dataclass(frozen=True, kw_only=True)
class AgentReading:
    """An invocation of an agent. `named`: the name is an agent's, rather than that of a chain or a workflow. `input`
    and `output` are the messages that it was given and that it ended with, where they are known: of the whole dialogue
    or of the reply alone. `status` is what our own exporter says."""

    name: str
    named: bool = True
    input: tuple[Message, ...] = ()
    output: tuple[Message, ...] = ()
    status: str | None = None
    facts: Facts = NO_FACTS


@dataclass(frozen=True, kw_only=True)
class StepReading:
    """A span that holds others and says nothing of a dialogue itself: a node of a graph, a task, a parser."""

    facts: Facts = NO_FACTS


@dataclass(frozen=True)
class Unread:
    """A span that the dialect knows and that is no part of a dialogue, or cannot be read: why. `known` is False for one
    that is in no dialect."""

    reason: str
    known: bool = True


Reading: TypeAlias = ChatReading | ToolReading | AgentReading | StepReading


class Dialect(Protocol):
    """What a dialect's module holds: its name, what the names of a span's attributes begin with where it can be in this
    dialect, and how it reads one. None: the span is not in this dialect."""

    @property
    def NAME(self) -> str: ...

    @property
    def MARKS(self) -> tuple[str, ...]: ...

    def read(self, span: SpanRecord) -> Reading | Unread | None: ...


__all__ = [
    "NO_FACTS",
    "AgentReading",
    "ChatReading",
    "Dialect",
    "Facts",
    "Reading",
    "StepReading",
    "ToolReading",
    "Unread",
]
