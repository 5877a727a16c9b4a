"""The outcome as a reward: what a verifier, a benchmark or the application itself says of how the dialogue ended."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from cm2_agent.types.checklist_item import function_source
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.trace import Trace

from .component import Context, RewardComponent


def outcome(of: str | Callable[..., Any], *, name: str | None = None, version: str | None = None) -> RewardComponent:
    """The stored outcome of that name (a number in [0, 1]; NULL where the trace has none), or what a function of (task,
    trace) says.

    The function may be async; what it raises, and what is no number in [0, 1], is NULL.

    >>> from cm2_agent.rewards import outcome
    >>> outcome("success").version
    'stored'
    """
    if isinstance(of, str):
        return RewardComponent(lambda trace: trace.outcomes.get(of), name=name or of, version=version or "stored")

    async def ask(trace: Trace, context: Context) -> Any:
        answer = of(context.task, trace)
        return await answer if inspect.isawaitable(answer) else answer

    source = of if inspect.isroutine(of) else type(of)
    called = name or str(getattr(of, "__name__", "outcome"))
    return RewardComponent(ask, name=called, version=version or content_hash(function_source(source))[:12])


__all__ = ["outcome"]
