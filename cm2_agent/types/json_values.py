"""JSON values: their type, the canonical spelling that hashes are taken of, equality, and their scalars."""

from __future__ import annotations

import hashlib
import json
import json.encoder
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

JSON: TypeAlias = Any
"""Any JSON value: None, bool, int, float, str, list or dict of them."""
CUT_AT = 262_144
"""Characters of JSON that are stored of what an application passes around (a graph's input and output, a tool's
artifact)."""


_SCALARS = frozenset({str, int, type(None)})


def _encoder(*, sort_keys: bool) -> Callable[[JSON], str]:
    """`json.JSONEncoder.encode` without spaces, with real characters, for short values: that makes the C encoder anew
    for every value, which takes most of its time. Where there is no C encoder, and for what may hold itself, it is
    what encodes."""
    plain = json.JSONEncoder(ensure_ascii=False, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False)
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode
    # without markers: a list within itself ends in RecursionError, and `plain` then says what is wrong
    chunks = make(None, plain.default, json.encoder.encode_basestring, None, ":", ",", sort_keys, False, False)

    def encode(value: JSON) -> str:
        try:
            return "".join(chunks(value, 0))
        except RecursionError:
            return plain.encode(value)

    return encode


_in_order = _encoder(sort_keys=False)
_canonical = _encoder(sort_keys=True)


def canonical_json(value: JSON) -> str:
    """The one spelling used for hashes and quotes: sorted keys, no spaces, real characters. Raises ValueError on NaN
    and infinities."""
    return _canonical(value)


def json_text(value: JSON) -> str:
    """JSON on one line with the keys in their order. Raises TypeError or ValueError on what is not JSON."""
    return _in_order(value)


def content_digest(value: JSON) -> bytes:
    """SHA-256 of the canonical JSON."""
    return text_digest(canonical_json(value))


def text_digest(canonical: str) -> bytes:
    """SHA-256 of JSON that is spelled canonically."""
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()


def content_hash(value: JSON) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return content_digest(value).hex()


def same_json(left: JSON, right: JSON) -> bool:
    """Structural equality of JSON values: key order and the spelling of numbers (1 and 1.0) do not matter, true is not
    1."""
    kind = type(left)
    if kind is type(right):
        if kind in _SCALARS:
            return bool(left == right)
        if kind is dict:
            return left.keys() == right.keys() and all(same_json(value, right[key]) for key, value in left.items())
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)


def leaves(value: JSON, read: Callable[[JSON], JSON] = lambda one: one) -> Iterator[JSON]:
    """The values in a JSON value that are no lists and no objects, in order; `read` replaces each part before it is
    looked into.

    >>> list(leaves({"a": [1, {"b": 2}], "c": {}}))
    [1, 2]
    """
    waiting = [value]
    while waiting:
        one = read(waiting.pop())
        if isinstance(one, Mapping):
            waiting.extend(reversed(list(one.values())))
        elif isinstance(one, list | tuple):
            waiting.extend(reversed(one))
        else:
            yield one


def scalars(value: JSON) -> Iterator[tuple[tuple[str, ...], JSON]]:
    """What a JSON value holds that is no list and no object, and those that are empty, each under its path: the keys,
    `[]` for any place of a list.

    >>> sorted(scalars({"a": [1, 2], "b": {}}))
    [(('a', '[]'), 1), (('a', '[]'), 2), (('b',), {})]
    """
    waiting: list[tuple[tuple[str, ...], JSON]] = [((), value)]
    while waiting:
        path, one = waiting.pop()
        if isinstance(one, Mapping) and one:
            waiting += [((*path, str(key)), item) for key, item in one.items()]
        elif isinstance(one, list | tuple) and one:
            waiting += [((*path, "[]"), item) for item in one]
        else:
            yield path, one
