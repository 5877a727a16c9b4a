"""Whether what a tool answered is an error: by its mark, else by its words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolCallResponse
from cm2_agent.types.tool_content import content_text

FAILURE_UNKNOWN: Final = "cm2.failure_unknown"
"""In the `extra` of a tool's answer: the recording does not tell whether the call failed."""
_LONGEST = 100_000
_OPENS = re.compile(
    r"""(?:
      <tool_use_error>
    | \W{0,3}(?:(?:fatal|tool|execution|internal|runtime|api|http|server)\s+){0,2}error(?:\s+\d{3}|\s+code\s+\d+)?
      \W{0,2}(?::|\s[-–—]\s|\]|$)
    | error\s+(?:executing|invoking|calling|running)\s+(?:tool|function)
    | unknown\s+(?:tool|action|function)(?!\w)
    | (?-i:(?:[A-Za-z_]\w*\.)*(?:[A-Za-z_]\w*(?:Error|Exception)|Exception)(?:\(|\s*:))
    | traceback\s+\(most\s+recent\s+call\s+last\)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_NOTHING = frozenset({"", "none", "null", "no", "no error", "false", "0", "ok"})


def is_error(response: ToolCallResponse) -> bool:
    """Whether the answer is an error: it is marked as one, or reads like one (`reads_as_error`)."""
    return response.error or reads_as_error(response.response)


def reads_as_error(value: JSON) -> bool:
    """Whether an answer that bears no mark says itself that the call failed.

    Text does by how it begins: `Error: …`, `ValueError: …`, a traceback, `Error executing tool …`, `Unknown action …`.
    A JSON object does by its own keys: an `error` that is neither empty nor false, `is_error` or `isError` true,
    `success` false, `status` "error". What stands deeper, or later in the text, is the tool's business.

    >>> reads_as_error("Error: no such order"), reads_as_error('{"error": "not allowed"}'), reads_as_error("shipped")
    (True, True, False)
    """
    value = content_text(value)
    if isinstance(value, Mapping):
        return _says_so(value)
    if not isinstance(value, str):
        return False
    text = value.strip()
    if not text.startswith("{"):
        return _OPENS.match(text) is not None
    if not (len(text) <= _LONGEST and any(key in text for key in _KEYS)):
        return False
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(read, Mapping) and _says_so(read)


_KEYS = ('"error"', '"is_error"', '"isError"', '"success"', '"status"')


def _says_so(value: Mapping[str, JSON]) -> bool:
    error = value.get("error")
    if isinstance(error, str):
        error = error.strip().casefold() not in _NOTHING
    if error or value.get("is_error") is True or value.get("isError") is True or value.get("success") is False:
        return True
    status = value.get("status")
    return isinstance(status, str) and status.strip().casefold() == "error"


__all__ = ["FAILURE_UNKNOWN", "is_error", "reads_as_error"]
