"""What a server takes its logprobs of, measured by two short completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp
from typing import Any

__all__ = ["measure", "question"]

_COLD, _HOT = 0.5, 2.0
_PROMPTS = ("Hi", "Name any colour.", "Tell me a story.")
_CLEAR = 0.2  # nats between the two likeliest tokens below which their ratio says little
_WHOLE = 1e-5  # how near to 1 two tokens come that are all there is


def question(model: str, prompt: str = _PROMPTS[0], temperature: float = 1.0) -> dict[str, Any]:
    """A request for one token out of two, with the logprobs of both."""
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
        "top_logprobs": 2,
    }


def measure(complete: Callable[[Mapping[str, Any]], Mapping[str, Any]], model: str) -> str | None:
    """raw, scaled or processed; None where no prompt tells, or there are no logprobs.

    The gap between the two likeliest tokens is divided by the temperature unless logprobs are raw, and the two are all
    there is, with top_k 2, only where they are processed."""
    for prompt in _PROMPTS:
        pairs = [_two(complete(question(model, prompt, temperature))) for temperature in (_COLD, _HOT)]
        if pairs[0] is None or pairs[1] is None:
            return None
        found = _mode(pairs[0], pairs[1])
        if found is not None:
            return found
    return None


def _mode(cold: tuple[float, float], hot: tuple[float, float]) -> str | None:
    gap, hot_gap = cold[0] - cold[1], hot[0] - hot[1]
    if gap < _CLEAR or hot_gap <= 0 or max(cold[0], hot[0]) > _WHOLE:  # above 0 it is a logit
        return None
    ratio = gap / hot_gap  # 1, or the ratio of the temperatures, which is 4
    if ratio < 1.6:
        return "raw" if ratio > 0.6 else None
    if not 2.5 < ratio < 6.5:
        return None
    return "processed" if all(abs(exp(a) + exp(b) - 1) < _WHOLE for a, b in (cold, hot)) else "scaled"


def _two(answer: Mapping[str, Any]) -> tuple[float, float] | None:
    """The two highest logprobs of the first token."""
    choice = answer["choices"][0]
    try:
        values = sorted(
            (float(one["logprob"]) for one in choice["logprobs"]["content"][0]["top_logprobs"]), reverse=True
        )
        return values[0], values[1]
    except (KeyError, TypeError, IndexError, ValueError):
        return None
