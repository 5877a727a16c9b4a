"""Which run a proxied call belongs to: a call whose prompt goes on with the calls of an earlier one is the same turn of
the same agent."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from cm2_agent.server.chat_call import normal

__all__ = ["Dialogues"]

_MOST = 100_000


class Dialogues:
    """The turns that a tool's answer may continue, by what was said since the user spoke last."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._traces: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def trace_of(self, project: str, thread: str | None, messages: Sequence[Any], answers: Sequence[Any]) -> str:
        """The trace id of a call with this prompt, which was answered so: that of the turn which it continues, or a new
        one."""
        last = _last_answer(messages)
        with self._lock:
            found = None
            if last is not None and all(_role(message) == "tool" for message in messages[last + 1 :]):
                found = self._traces.get(_key(project, thread, messages[: last + 1]))
            trace = found or secrets.token_hex(16)
            for answer in answers:
                if answer.get("tool_calls"):
                    self._traces[_key(project, thread, [*messages, answer])] = trace
            while len(self._traces) > self._most:
                self._traces.popitem(last=False)
        return trace


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _last_answer(messages: Sequence[Any]) -> int | None:
    for number in range(len(messages) - 1, -1, -1):
        if _role(messages[number]) == "assistant":
            return number
    return None


def _key(project: str, thread: str | None, messages: Sequence[Any]) -> bytes:
    start = next((n for n in range(len(messages) - 1, -1, -1) if _role(messages[n]) == "user"), 0)
    said = json.dumps([project, thread, *(normal(message) for message in messages[start:])], default=str)
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()
