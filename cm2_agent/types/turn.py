"""Turns and steps: the parts that a dialogue is cut into (docs/method.md, "Run, trace, turn, step")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cm2_agent.errors import TraceError
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import ModelCall, ToolRun
from cm2_agent.types.scope import Scope
from cm2_agent.types.tool_use import CallStatus, ToolUse, uses


@dataclass(frozen=True, kw_only=True)
class Step:
    """One assistant message with the tool responses that follow it. `call` is the model call that wrote it, where it
    was recorded. The message's calls have the arguments that ran: what the model wrote is in `call.output`."""

    turn: int
    index: int
    """0-based within the turn."""
    number: int
    """0-based within the dialogue."""
    message: Message
    responses: tuple[ToolCallResponse, ...] = ()
    call: ModelCall | None = None
    runs: tuple[ToolRun | None, ...] = ()
    """For each tool call of the message its execution, None where there was none; empty where nothing is known."""
    recorded: tuple[bool, ...] = ()
    """For each tool call of the message whether an execution would have been recorded."""

    @property
    def agent(self) -> str | None:
        """The agent whose step it is, where the graph holds several: by its call, else by the message's name."""
        return self.call.agent if self.call is not None and self.call.agent is not None else self.message.name

    @property
    def is_reply(self) -> bool:
        """True where the step speaks to the user: text and no tool call."""
        return not self.message.tool_calls and bool(self.message.text.strip())

    @cached_property
    def tool_uses(self) -> tuple[ToolUse, ...]:
        """The message's tool calls in order, each with its answer and its execution, which are matched by position
        within an id."""
        tools = () if self.call is None else self.call.tools
        return uses(self.message.tool_calls, self.responses, runs=self.runs, recorded=self.recorded, tools=tools)

    def response_to(self, call: ToolCall) -> ToolCallResponse | None:
        """The response to one of this step's calls."""
        found = self._use(call)
        return None if found is None else found.response

    def status_of(self, call: ToolCall) -> CallStatus:
        """What became of one of this step's calls (`ToolUse.status`). Raises TraceError: the step has no such call."""
        found = self._use(call)
        if found is None:
            raise TraceError(f"step {self.number} made no call {call!r}; expected one of step.message.tool_calls")
        return found.status

    def _use(self, call: ToolCall) -> ToolUse | None:
        """By identity first: two calls of a message may be equal. The model's own call, where another ran in its
        place, by its position."""
        for same in (lambda own: own is call, lambda own: own == call):
            found = next((use for use in self.tool_uses if same(use.call)), None)
            if found is not None:
                return found
        written = () if self.call is None or self.call.output is None else self.call.output.tool_calls
        return next((use for own, use in zip(written, self.tool_uses, strict=False) if own == call), None)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """From the user's message (several where nobody answered in between) to the assistant's reply."""

    index: int
    user: tuple[Message, ...]
    steps: tuple[Step, ...]

    @cached_property
    def scope(self) -> Scope:
        """What views of this turn share."""
        return Scope.of(self.steps)

    @cached_property
    def dialogue_scope(self) -> Scope:
        """The turn as a part of the dialogue's scope: its steps are counted within the dialogue."""
        first = self.steps[0].number if self.steps else 0
        return Scope.of(self.steps, first=first) if first else self.scope

    @cached_property
    def memo(self) -> dict[object, Any]:
        """What was computed of the dialogue up to and with this turn, by what computed it. A dialogue that goes on has
        the same turns but for the one that goes on, and so what was computed of them."""
        return {}


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How far the dialogue had come when a run ended: the last turn's index (-1: there was none), its steps so far,
    and whether a user message had come after it that nothing answered."""

    turn: int
    steps: int
    unanswered: bool


__all__ = ["RunEnd", "Step", "Turn"]
