"""What logprobs are taken of, measured on any distribution: never the wrong kind, and None only where it is close."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.models.logprobs_mode import measure

LOGITS = st.lists(st.floats(-30, 30), min_size=3, max_size=40)


def answering(logits: Sequence[float], mode: str, noise: float = 0.0) -> Any:
    """A server with these logits for the first token of any answer; `noise` is added in turn, as rounding does."""
    asked = []

    def complete(body: Mapping[str, Any]) -> Any:
        asked.append(body)
        off = noise * (-1) ** len(asked)
        used = [value + (off if number == 0 else 0.0) for number, value in enumerate(sorted(logits, reverse=True))]
        shown = used if mode.startswith("raw") else [value / body["temperature"] for value in used]
        kept = shown[: body["top_k"]] if mode.startswith("processed") else shown
        total = 0.0 if mode.endswith("logits") else max(kept) + math.log(sum(math.exp(v - max(kept)) for v in kept))
        values = [value - total for value in kept] + [-9999.0] * (len(shown) - len(kept))
        top = [{"token": "t", "logprob": value} for value in values[: body["top_logprobs"]]]
        return {"choices": [{"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}]}

    return complete


@pytest.mark.parametrize("mode", ["raw", "scaled", "processed"])
@given(logits=LOGITS, noise=st.sampled_from([0.0, 0.03]))
def test_the_kind_is_found_or_left_open(mode: str, logits: list[float], noise: float) -> None:
    found = measure(answering(logits, mode, noise), "m")
    first, second, *_ = sorted(logits, reverse=True)
    if first - second > 0.5:
        assert found == mode
    assert found in (mode, None)


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logits"])
@given(logits=LOGITS.filter(lambda values: max(values) > 1))
def test_logits_are_no_logprobs(mode: str, logits: list[float]) -> None:
    assert measure(answering(logits, mode), "m") is None


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": [{"logprob": -1.0}]}, {"content": [3]}])
def test_no_logprobs_tell_nothing(logprobs: Any) -> None:
    assert measure(lambda _: {"choices": [{"logprobs": logprobs}]}, "m") is None
