"""Dialogues that nobody held: made of user messages, calls with their results, and replies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, Text, ToolCall, ToolCallResponse
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace


@dataclass(frozen=True, kw_only=True)
class MadeCall:
    """A call of a tool and what it answers; `failed` makes the answer an error."""

    name: str
    arguments: JSON
    result: str
    failed: bool = False


MadeStep = str | Sequence[MadeCall]
"""A reply, or calls that are made at once."""


def dialogue(name: str, turns: Iterable[tuple[str, Sequence[MadeStep]]], *, system: str | None = None) -> Trace:
    """The trace of a dialogue, from each turn's user message and steps.

    >>> from cm2_agent.rewards.linting.dialogue import MadeCall, dialogue
    >>> call = MadeCall(name="get_order", arguments={"order_id": 7}, result="no such order", failed=True)
    >>> trace = dialogue("failed", [("Where is order 7?", [[call], "It was shipped."])])
    >>> [step.message.text for step in trace.steps], trace.scope(0).calls[0].status
    (['', 'It was shipped.'], 'failed')
    """
    messages = [] if system is None else [Message.of("system", system)]
    number = 0
    for user, steps in turns:
        messages.append(Message.of("user", user))
        for step in steps:
            made = list(_step(step, number))
            number += len(made[0].tool_calls)
            messages += made
    return Trace.of(Run(id=name, messages=tuple(messages)))


def _step(step: MadeStep, first: int) -> Iterator[Message]:
    if isinstance(step, str):
        yield Message(role="assistant", parts=(Text(content=step),))
        return
    ids = [f"call-{first + place}" for place in range(len(step))]
    yield Message(
        role="assistant",
        parts=tuple(
            ToolCall(id=id, name=call.name, arguments=call.arguments) for id, call in zip(ids, step, strict=True)
        ),
    )
    yield Message(
        role="tool",
        parts=tuple(
            ToolCallResponse(id=id, response=call.result, error=call.failed) for id, call in zip(ids, step, strict=True)
        ),
    )


def without_calls(trace: Trace) -> Trace:
    """What the trace's agent told its user, without anything that it did for it."""
    kept = (_spoken(message) for message in trace.messages if message.role != "tool")
    return Trace.of(Run(id=f"{trace.id} without its calls", messages=tuple(one for one in kept if one is not None)))


def _spoken(message: Message) -> Message | None:
    if message.role != "assistant":
        return message
    return None if message.tool_calls else Message.of("assistant", message.text)


def with_failed_calls(trace: Trace, error: str = "error: the service is unavailable") -> Trace:
    """The trace as if every one of its calls had failed, and its agent had gone on all the same."""
    messages = []
    for message in trace.messages:
        if message.role == "tool":
            parts = (ToolCallResponse(id=one.id, response=error, error=True) for one in message.responses)
            messages.append(Message(role="tool", parts=tuple(parts)))
        else:
            messages.append(message)
    return Trace.of(Run(id=f"{trace.id} with failed calls", messages=tuple(messages)))


__all__ = ["MadeCall", "MadeStep", "dialogue", "with_failed_calls", "without_calls"]
