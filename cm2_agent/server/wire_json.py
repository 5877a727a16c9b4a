"""JSON of a chat API by wire: orjson, and Python's own for what orjson refuses though servers send it (NaN, half of a
surrogate pair)."""

from __future__ import annotations

import json
from typing import Any

import orjson

__all__ = ["dumps", "loads"]


def loads(data: bytes) -> Any:
    """The value. Raises ValueError for what is no JSON.

    >>> loads(b'{"logprob": NaN}')
    {'logprob': nan}
    """
    try:
        return orjson.loads(data)
    except ValueError:
        try:
            return json.loads(data)
        except RecursionError as error:
            raise ValueError("the JSON is nested too deep") from error


def dumps(value: Any) -> bytes:
    """A value that `loads` gave, as JSON.

    >>> dumps({"a": [1, None]}), dumps(float("nan"))
    (b'{"a":[1,null]}', b'null')
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()
