"""A reward model as a reward: any callable that gives a dialogue a number, which is mapped into [0, 1]."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from cm2_agent.errors import JudgeError
from cm2_agent.types.trace import Trace

from .component import Context, RewardComponent


def sigmoid(value: float) -> float:
    """1 / (1 + e^−x), in [0, 1]: what a Bradley–Terry reward model's logit means against a reply of logit 0.

    >>> from cm2_agent.rewards import sigmoid
    >>> sigmoid(0.0), round(sigmoid(3.0), 3)
    (0.5, 0.953)
    """
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def preference(
    model: Callable[..., Any],
    *,
    version: str,
    name: str = "preference",
    to_unit: Callable[[float], float] | None = None,
) -> RewardComponent:
    """A reward model's number for a trace, as a reward.

    Args:
        model: Called with the trace, sync or async; it returns a number (a scalar of torch or numpy too), or None for
            NULL.
        version: Names the model: its weights cannot be seen from here.
        name: Under which the value is stored.
        to_unit: Maps the number into [0, 1], `sigmoid` for a logit. None: a number outside [0, 1] is NULL, as is NaN.

    >>> import asyncio
    >>> from cm2_agent import Trace
    >>> from cm2_agent.rewards import preference, sigmoid
    >>> helpful = preference(lambda trace: 0.0, version="rm-2025-01", to_unit=sigmoid)
    >>> asyncio.run(helpful(Trace(id="t", runs=()))).value, helpful.version
    (0.5, 'rm-2025-01|sigmoid')
    """

    async def ask(trace: Trace, context: Context) -> float | None:
        answer = model(trace)
        answer = await answer if inspect.isawaitable(answer) else answer
        if answer is None:
            return None
        value = float(answer)
        if math.isnan(value):
            raise JudgeError("the reward model answered NaN")
        return value if to_unit is None else to_unit(value)

    mapped = "" if to_unit is None else f"|{getattr(to_unit, '__name__', 'mapped')}"
    return RewardComponent(ask, name=name, version=f"{version}{mapped}")


__all__ = ["preference", "sigmoid"]
