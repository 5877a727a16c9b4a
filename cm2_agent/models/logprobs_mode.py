"""What a server takes its logprobs of, measured by two short completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["measure", "question"]

_COLD, _HOT = 0.5, 2.0
_PROMPTS = ("Hi", "Name any colour.", "Tell me a story.")
_CLEAR = 0.2  # nats between the two likeliest tokens below which rounding decides their ratio
_CUT = -1000.0  # below it a token was cut off: minus infinity, which vLLM sends as -9999


def question(model: str, prompt: str = _PROMPTS[0], temperature: float = 1.0) -> dict[str, Any]:
    """A request for one token out of the two likeliest, with the logprobs of three."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 1,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 2,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": True,
        "top_logprobs": 3,
    }


def measure(complete: Callable[[Mapping[str, Any]], Mapping[str, Any]], model: str) -> str | None:
    """raw, scaled or processed; None where no prompt tells, or there are no logprobs.

    The gap between the two likeliest tokens is divided by the temperature unless logprobs are raw; the third token,
    which top_k 2 cuts off, has a logprob unless they are processed."""
    for prompt in _PROMPTS:
        cold, hot = (_highest(complete(question(model, prompt, temperature))) for temperature in (_COLD, _HOT))
        if cold is None or hot is None:
            return None
        found = _mode(cold, hot)
        if found is not None:
            return found
    return None


def _mode(cold: tuple[float, ...], hot: tuple[float, ...]) -> str | None:
    gap, hot_gap = cold[0] - cold[1], hot[0] - hot[1]
    if gap < _CLEAR or hot_gap <= 0 or max(cold[0], hot[0]) > 0.01:  # above 0 it is a logit
        return None
    cut = [values[2] < _CUT for values in (cold, hot)]
    ratio = gap / hot_gap  # 1, or the ratio of the temperatures, which is 4
    if 0.6 < ratio < 1.6:
        return None if any(cut) else "raw"
    if 2.5 < ratio < 6.5 and cut[0] == cut[1]:
        return "processed" if cut[0] else "scaled"
    return None


def _highest(answer: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The three highest logprobs of the first token."""
    try:
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        values = sorted((float(one["logprob"]) for one in top), reverse=True)
    except (KeyError, TypeError, IndexError, ValueError):
        return None
    return tuple(values[:3]) if len(values) >= 3 else None
