"""Token ids and logprobs as span attributes: base64 of little-endian numbers, which costs a tenth of lists."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cm2_agent.dialects import semconv
from cm2_agent.types.json_values import JSON
from cm2_agent.types.packed import Packed

__all__ = ["Tokens", "checked_tokens", "decode_ids", "decode_logprobs", "encode_ids", "encode_logprobs", "read_tokens"]


class Tokens(NamedTuple):
    """The tokens of one model call; `problem` says why those that stood on its span were not taken."""

    prompt_ids: Sequence[int] | None = None
    completion_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    problem: str | None = None


def encode_ids(ids: Sequence[int]) -> str:
    """Token ids as base64 of little-endian int32. Raises OverflowError outside int32."""
    return _encode(array("i", ids))


def decode_ids(text: str) -> tuple[int, ...]:
    """The inverse of `encode_ids`. Raises ValueError on what is not base64 of whole numbers."""
    return tuple(_decode("i", text))


def encode_logprobs(logprobs: Sequence[float]) -> str:
    """Logprobs as base64 of little-endian float32."""
    return _encode(array("f", logprobs))


def decode_logprobs(text: str) -> tuple[float, ...]:
    """The inverse of `encode_logprobs`, to float32 precision. Raises ValueError."""
    return tuple(_decode("f", text))


def read_tokens(attributes: Mapping[str, JSON]) -> Tokens:
    """The token ids and logprobs on a chat span. Those that cannot be a model's (ids below 0, logprobs above 0 or not
    finite, of other lengths) are left out, all three, and `problem` says why: the call is text-only then."""
    given = {
        name: attributes[name]
        for name in (semconv.PROMPT_IDS, semconv.COMPLETION_IDS, semconv.LOGPROBS)
        if name in attributes
    }
    if not given:
        return Tokens()
    try:
        if not all(isinstance(text, str) for text in given.values()):
            raise ValueError("expected base64 text")
        prompt, completion = (
            Packed.of(_decode("i", given[name])) if name in given else None
            for name in (semconv.PROMPT_IDS, semconv.COMPLETION_IDS)
        )
        logprobs: Packed[float] | None = (
            Packed.of(_decode("f", given[semconv.LOGPROBS])) if semconv.LOGPROBS in given else None
        )
    except (ValueError, binascii.Error):
        return Tokens(problem="token ids on the span are not base64 of int32 and float32 numbers")
    return checked_tokens(prompt, completion, logprobs)


def checked_tokens(
    prompt: Sequence[int] | None, completion: Sequence[int] | None, logprobs: Sequence[float] | None
) -> Tokens:
    """The tokens, or none of them and the reason why they cannot be a model's."""
    if any(ids and np.minimum.reduce(np.asarray(ids)) < 0 for ids in (prompt, completion)):
        return Tokens(problem="token ids on the span are below 0")
    if logprobs and not _are_logarithms(np.asarray(logprobs)):
        return Tokens(problem="logprobs on the span are above 0 or not finite")
    if logprobs is not None and len(logprobs) != len(completion or ()):
        return Tokens(problem="logprobs and token ids on the span differ in number")
    return Tokens(prompt, completion, logprobs)


def _are_logarithms(numbers: NDArray[Any]) -> bool:
    """Whether all are finite and at most 0: what is no number is neither above nor below another."""
    return bool(np.maximum.reduce(numbers) <= 0 and np.minimum.reduce(numbers) > -math.inf)


def _encode(values: array[Any]) -> str:
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")


def _decode(code: str, text: str) -> array[Any]:
    values = array(code)
    values.frombytes(binascii.a2b_base64(text, strict_mode=True))
    if sys.byteorder == "big":
        values.byteswap()
    return values
