"""Strict JSON: a decoder that refuses whatever could be read in two ways."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["strict_decoder"]


def strict_decoder(*, line_breaks: bool = False, repeats: bool = False) -> json.JSONDecoder:
    """A decoder that raises ValueError for what JSON cannot write, NaN and numbers that are no floats, and for a key
    that an object gives twice. `line_breaks` may stand within strings; `repeats`: a key may be given again with the
    same value."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found and not (repeats and found[key] == value):
                raise ValueError(f"the key {key[:80]!r} is given twice")
            found[key] = value
        return found

    return json.JSONDecoder(
        strict=not line_breaks, object_pairs_hook=unique, parse_constant=_no_number, parse_float=_finite
    )


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large")
    return number
