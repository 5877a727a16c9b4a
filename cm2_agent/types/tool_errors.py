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
_UNMISTAKABLE = (
    r"bad\s+request|unauthori[sz]ed|forbidden|method\s+not\s+allowed|too\s+many\s+requests"
    r"|internal\s+server\s+error|bad\s+gateway|service\s+unavailable|gateway\s+time-?out"
)
_REASON = rf"(?:{_UNMISTAKABLE}|not\s+found|conflict|unprocessable\s+\w+)"
"""What HTTP calls its errors; without the first, what a search that finds nothing may say too."""
_OPENS = re.compile(
    rf"""(?:
      <tool_use_error>
    | \W{{0,3}}(?:(?:fatal|tool|execution|internal|runtime|api|http|server)\s+){{0,2}}error(?:\s+\d{{3}}|\s+code\s+\d+)?
      \W{{0,2}}(?::|\s[-–—]\s|\]|$)
    | error\s+(?:executing|invoking|calling|running)\s+(?:tool|function)
    | unknown\s+(?:tool|action|function)(?!\w) | tool\s+\S+\s+(?:was\s+)?not\s+found | \S+\s+is\s+not\s+a\s+valid\s+tool
    | error\s+code:\s*[45]\d\d(?!\d) | error\s*\(\s*[45]\d\d\s*\) | error\s*\n | <error>
    | http(?:/\d(?:\.\d)?)?\s+(?:error\s+|status\s+)?[45]\d\d(?!\d)
    | [45]\d\d\s+(?:client\s+error|server\s+error|{_REASON})
    | failed:(?!\s*\d)
    | failed\s+to\s+(?:get|fetch|find|look\s*up|retrieve|load|connect|reach|query|execute|call|parse|authenticate)(?!\w)
    | (?:{_UNMISTAKABLE}|permission\s+denied|access\s+denied|time(?:d\s+)?out|request\s+timed\s+out
      |connection\s+(?:refused|reset|timed\s+out|error))(?:\W*$|\s*:)
    | (?:fehler|erreur|errore|erro|fout|błąd|ошибка)\s*: | (?:错误|錯誤|エラー|오류)\s*[:：]
    | (?-i:(?:[A-Za-z_]\w*\.)*(?:[A-Za-z_]\w*(?:Error|Exception)|Exception)(?:\(|\s*:))
    | traceback\s+\(most\s+recent\s+call\s+last\)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_PRINTED = re.compile(r"""\{\s*'(?:error|Error)'\s*:(?!\s*(?:None|False|''|""|0)\s*[,}])""")
"""A dict of Python, printed."""
_DETAIL = re.compile(rf"(?:{_REASON}|not\s+authenticated)\.?", re.IGNORECASE)
"""What an API of FastAPI or Django says by default, under `detail`."""
_NOTHING = frozenset({"", "none", "null", "no", "no error", "false", "0", "ok"})


def is_error(response: ToolCallResponse) -> bool:
    """Whether the answer is an error: it is marked as one, or reads like one (`reads_as_error`)."""
    return response.error or reads_as_error(response.response)


def reads_as_error(value: JSON) -> bool:
    """Whether an answer that bears no mark says itself that the call failed.

    Text does by how it begins: `Error: …`, `ValueError: …`, a traceback, `Error executing tool …`, `Unknown action …`.
    A JSON object does by its own keys: an `error` that is neither empty nor false, `is_error` or `isError` true, `ok`
    or `success` false, `status` "error". One that says nothing but what went wrong does by less: `status` "failed" or
    from 400 on, `failed` true, `errors` that are not empty. Beside other keys these are what the tool was asked for: a
    payment's status, a failed job. What stands deeper, or later in the text, is the tool's business.

    >>> reads_as_error("Error: no such order"), reads_as_error('{"error": "not allowed"}'), reads_as_error("shipped")
    (True, True, False)
    >>> reads_as_error({"status": "failed"}), reads_as_error({"status": "failed", "payment": 7})
    (True, False)
    """
    value = content_text(value)
    if isinstance(value, Mapping):
        return _says_so(value)
    if not isinstance(value, str):
        return False
    text = value.strip()
    if not text.startswith("{"):
        return _OPENS.match(text) is not None
    if _PRINTED.match(text):
        return True
    if not (len(text) <= _LONGEST and any(key in text for key in _KEYS)):
        return False
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(read, Mapping) and _says_so(read)


_KEYS = (
    '"error"',
    '"Error"',
    '"errors"',
    '"code"',
    '"detail"',
    '"is_error"',
    '"isError"',
    '"ok"',
    '"success"',
    '"failed"',
    '"failure"',
    '"status"',
    '"statusCode"',
    '"status_code"',
)
_REPORTS = frozenset(
    {
        *(key.strip('"').casefold() for key in _KEYS),
        *("code", "message", "msg", "reason", "detail", "details", "description", "title", "type", "cause", "hint"),
        *(
            "trace",
            "traceback",
            "stack",
            "timestamp",
            "time",
            "path",
            "request_id",
            "requestid",
            "retry_after",
            "retryable",
        ),
    }
)
"""Keys that say what went wrong, in small letters."""
_FAILED = frozenset({"failed", "failure", "fail", "unsuccessful"})


def _says_so(value: Mapping[str, JSON]) -> bool:
    error = value.get("error") or value.get("Error")
    if isinstance(error, str):
        error = error.strip().casefold() not in _NOTHING
    if error or value.get("is_error") is True or value.get("isError") is True:
        return True
    if _is_false(value.get("ok")) or _is_false(value.get("success")):
        return True
    status = value.get("status")
    if isinstance(status, str) and status.strip().casefold() == "error":
        return True
    told = {key for key, given in value.items() if given is not None and given != [] and given != {}}
    return all(isinstance(key, str) and key.casefold() in _REPORTS for key in told) and _reports_failure(value)


def _reports_failure(value: Mapping[str, JSON]) -> bool:
    """Of an object that says nothing else: whether it says that the call failed."""
    status = next((value[key] for key in ("status", "statusCode", "status_code") if key in value), None)
    if isinstance(status, str):
        text = status.strip().casefold()
        return text in _FAILED or (text.isdecimal() and len(text) == 3 and int(text) >= 400)
    if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
        return True
    code, detail = value.get("code"), value.get("detail")
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        return True
    if isinstance(detail, str) and _DETAIL.fullmatch(detail.strip()):
        return True
    return value.get("failed") is True or value.get("failure") is True or bool(value.get("errors"))


def _is_false(value: JSON) -> bool:
    return value is False or (isinstance(value, str) and value.strip().casefold() == "false")


__all__ = ["FAILURE_UNKNOWN", "is_error", "reads_as_error"]
