"""Penalties by rule: how much of a dialogue is malformed, failed or too long, each in [0, 1] where 1 is the worst."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from cm2_agent.errors import ChecklistError
from cm2_agent.types.trace import Step, Trace

from .component import RewardComponent

Unit: TypeAlias = Literal["steps", "calls", "tokens", "characters"]


def format_penalty(*, text_beside_calls: bool = True, tools: frozenset[str] | None = None) -> RewardComponent:
    """malformed steps / steps: the share of the assistant's messages whose form is wrong.

    A step is malformed where it is empty (neither text nor call), where a call's arguments are no JSON object, and
    where one step uses a call id twice. NULL for a dialogue without steps.

    Args:
        text_beside_calls: Whether a step is malformed, too, where it speaks beside its calls.
        tools: The names that may be called; a call of any other is malformed. None: any.

    >>> import asyncio
    >>> from cm2_agent import Message, Run, Trace
    >>> from cm2_agent.rewards import format_penalty
    >>> replies = [Message.of("assistant", "Wait."), Message.of("assistant", "")]
    >>> trace = Trace.of(Run(id="t", messages=[Message.of("user", "Hi"), *replies]))
    >>> asyncio.run(format_penalty()(trace)).value
    0.5
    """

    def form(trace: Trace) -> float | None:
        steps = trace.steps
        return sum(_malformed(step, text_beside_calls, tools) for step in steps) / len(steps) if steps else None

    limited_to = "" if tools is None else f",tools={'+'.join(sorted(tools))}"
    return RewardComponent(form, name="format", version=f"1(text_beside_calls={text_beside_calls}{limited_to})")


def tool_error_penalty() -> RewardComponent:
    """failed tool responses / tool responses; 0 for a dialogue without any: nothing failed. A tool that raised without
    an answer, ending the run, counts as a failed response.

    >>> from cm2_agent import Checklist, Item, Stack
    >>> from cm2_agent.rewards import penalty, tool_error_penalty
    >>> support = Checklist(Item("replies", check={"replied": True}), name="support")
    >>> Stack(support, penalty(tool_error_penalty(), weight=0.2)).terms[-1].version
    'penalty*0.2 tool_error=2'
    """

    def errors(trace: Trace) -> float:
        responses = [response for step in trace.steps for response in step.responses]
        unanswered = sum(use.error is not None for step in trace.steps for use in step.tool_uses)
        count = len(responses) + unanswered
        return (sum(response.error for response in responses) + unanswered) / count if count else 0.0

    return RewardComponent(errors, name="tool_error", version="2")


def length_penalty(free: float, most: float, *, unit: Unit = "steps") -> RewardComponent:
    """clip((n − free) / (most − free), 0, 1): nothing up to `free`, all of it from `most` on.

    The soft overlong punishment of DAPO (arXiv 2503.14476 Eq. 13), turned to [0, 1].

    Args:
        free: The length up to which nothing is taken, 0 or more.
        most: The length from which on the penalty is 1, above `free`.
        unit: What n counts: the dialogue's `steps`, tool `calls`, `characters` of the assistant's text, or `tokens`
            that its model wrote (their ids, else the usage that the provider reported; NULL where a call has neither).

    Raises:
        ChecklistError: Not 0 ≤ free < most, or an unknown unit.

    >>> import asyncio
    >>> from cm2_agent import Message, Run, Trace
    >>> from cm2_agent.rewards import length_penalty
    >>> trace = Trace.of(Run(id="t", messages=[Message.of("user", "Hi"), Message.of("assistant", "Hello you!")]))
    >>> asyncio.run(length_penalty(5, 15, unit="characters")(trace)).value
    0.5
    """
    if not 0 <= free < most:
        raise ChecklistError(
            f"a length penalty is free up to {free} and whole at {most} {unit}; expected 0 <= free < most"
        )
    if unit not in _COUNTS:
        raise ChecklistError(f"a length penalty counts {unit!r}; expected one of {', '.join(_COUNTS)}")

    def length(trace: Trace) -> float | None:
        n = _COUNTS[unit](trace)
        return None if n is None else min(1.0, max(0.0, (n - free) / (most - free)))

    return RewardComponent(length, name="length", version=f"1({free:g}..{most:g} {unit})")


def _malformed(step: Step, text_beside_calls: bool, tools: frozenset[str] | None) -> bool:
    calls, text = step.message.tool_calls, bool(step.message.text.strip())
    ids = [call.id for call in calls if call.id is not None]
    return (
        (not calls and not text)
        or (text_beside_calls and bool(calls) and text)
        or len(set(ids)) < len(ids)
        or any(not isinstance(call.arguments, Mapping) for call in calls)
        or (tools is not None and any(call.name not in tools for call in calls))
    )


def _tokens(trace: Trace) -> float | None:
    total = 0
    for call in trace.calls:
        if call.message is None:
            continue
        count = len(call.completion_ids) if call.completion_ids is not None else call.usage.get("output_tokens")
        if count is None:
            return None
        total += count
    return total if trace.calls else None


_COUNTS: Mapping[str, Callable[[Trace], float | None]] = {
    "steps": lambda trace: len(trace.steps),
    "calls": lambda trace: sum(len(step.message.tool_calls) for step in trace.steps),
    "characters": lambda trace: sum(len(step.message.text) for step in trace.steps),
    "tokens": _tokens,
}

__all__ = ["format_penalty", "length_penalty", "tool_error_penalty"]
