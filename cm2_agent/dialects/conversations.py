"""Which dialogues were seen, so that a model call that has no conversation's id goes on with the right one."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import Message, Reasoning, part_to_json
from cm2_agent.types.run import Run

_MOST: Final = 10_000


class Conversations:
    """The last dialogues, by all that was said in them, tool calls with their ids and arguments included. A run without
    a thread whose history is one of them goes on with its trace; what goes on twice from the same place is a
    conversation of its own from there, which keeps its history. Dialogues of different users or sessions are never
    joined. Safe to share between threads."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._traces: OrderedDict[bytes, str | None] = OrderedDict()
        self._lock = threading.Lock()

    def placed(self, run: Run) -> Run:
        """The run, in the trace that it goes on with, where that is known."""
        if run.thread is not None or run.trace is not None:
            return run
        before = _extended(_whose(run), run.history)
        with self._lock:
            found = self._traces.get(before) if run.history else None
            if found is not None:
                self._traces[before] = None  # from here it has gone on
                run = replace(run, trace=found, history=())
            if any(message.role == "assistant" for message in run.messages):
                key = _extended(before, run.messages)
                self._traces[key] = run.trace_id
                self._traces.move_to_end(key)
                while len(self._traces) > self._most:
                    self._traces.popitem(last=False)
        return run


def _whose(run: Run) -> bytes:
    """What two users said word for word alike is not one dialogue."""
    return canonical_json([run.user, run.session]).encode("utf-8", "surrogatepass") if run.user or run.session else b""


def _extended(key: bytes, messages: Iterable[Message]) -> bytes:
    for message in messages:
        if message.role == "system":
            continue
        parts = [part_to_json(part) for part in message.parts if not isinstance(part, Reasoning)]
        said = canonical_json([message.role, parts]).encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(key + said, digest_size=16).digest()
    return key


__all__ = ["Conversations"]
