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
    """1 / (1 + e^−x): what a Bradley–Terry reward model's logit means against a reply of logit 0."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def preference(
    model: Callable[..., Any],
    *,
    version: str,
    name: str = "preference",
    to_unit: Callable[[float], float] | None = None,
) -> RewardComponent:
    """What the reward model says of the trace.

    `model(trace)` answers a number (or a scalar of torch or numpy), sync or async. `to_unit` maps it into [0, 1]
    (`sigmoid` for a logit); without it a number outside is NULL, as is NaN. `version` names the model: its weights
    cannot be seen from here."""

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
