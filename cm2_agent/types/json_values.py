"""JSON values: their type, the canonical spelling that hashes are taken of, and equality."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

JSON: TypeAlias = Any
"""Any JSON value: None, bool, int, float, str, list or dict of them."""
CUT_AT = 262_144
"""Characters of JSON that are stored of what an application passes around (a graph's input and output, a tool's
artifact)."""


_in_order = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_json(value: JSON) -> str:
    """The one spelling used for hashes and quotes: sorted keys, no spaces, real characters. Raises ValueError on NaN
    and infinities."""
    return _canonical(value)


def json_text(value: JSON) -> str:
    """JSON on one line with the keys in their order. Raises TypeError or ValueError on what is not JSON."""
    return _in_order(value)


def content_digest(value: JSON) -> bytes:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).digest()


def content_hash(value: JSON) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return content_digest(value).hex()


def same_json(left: JSON, right: JSON) -> bool:
    """Structural equality of JSON values: key order and the spelling of numbers (1 and 1.0) do not matter, true is not
    1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)
