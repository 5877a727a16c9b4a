"""Traces that are still growing, in memory, so that scoring one again after its next run loads nothing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from operator import is_
from typing import Any

from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace

__all__ = ["LiveTraces"]

_REFERENCE = 8
_OBJECT = 400
"""Rough sizes in bytes: of a place in a tuple, and of a message or a call without its text."""


class LiveTraces:
    """The traces that had a run last, as many as `most` bytes hold. Safe to use from several threads.

    A trace is here only where all its runs are known: `store_count`, the number of runs that the store says it has,
    must be that of ours, or another process has added to it. Runs come in the order in which they began."""

    def __init__(self, most: int = 32_000_000) -> None:
        self._most = most
        self.forget()

    def forget(self) -> None:
        """Begin afresh, as in a forked child."""
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[Trace, int]] = OrderedDict()
        self._weight = 0

    def put(self, trace: Trace) -> None:
        """Remember a trace as it was loaded."""
        self._put(
            trace, sum(weight_of(run, before) for run, before in zip(trace.runs, (None, *trace.runs), strict=False))
        )

    def add(self, trace_id: str, run: Run) -> None:
        """Take note of a run that was saved as part of a trace: the trace grows by it, begins with it, or is not known
        any more."""
        with self._lock:
            held = self._pop(trace_id)
        if held is None:
            begins = run.trace_id == trace_id and run.branch is None and not run.history
            if begins:
                self._put(Trace(id=trace_id, runs=(run,)), weight_of(run))
            return
        trace, weight = held
        if run.started > trace.runs[-1].started:
            self._put(trace.with_run(run), weight + weight_of(run, trace.runs[-1]))
            return
        known = next((other for other in trace.runs if other.id == run.id), None)
        if known is None:
            return
        if known.ended == run.ended and known.messages == run.messages and known.status == run.status:
            self._put(trace, weight)  # it was loaded with it

    def get(self, trace_id: str, store_count: int) -> Trace | None:
        """The trace with so many runs, None where it must be loaded."""
        with self._lock:
            held = self._held.get(trace_id)
            if held is None:
                return None
            if len(held[0].runs) != store_count:
                self._pop(trace_id)
                return None
            self._held.move_to_end(trace_id)
            return held[0]

    def release(self, trace: Trace) -> None:
        """Let go of a trace that was scored, where it hardly ever goes on: one run without a thread. Should a client
        send its dialogue again, it is loaded once, and held from then on."""
        if len(trace.runs) > 1 or any(run.thread is not None for run in trace.runs):
            return
        with self._lock:
            held = self._held.get(trace.id)
            if held is not None and held[0] is trace:
                self._pop(trace.id)

    def _put(self, trace: Trace, weight: int) -> None:
        with self._lock:
            self._pop(trace.id)
            self._held[trace.id] = trace, weight
            self._weight += weight
            while self._weight > self._most:
                self._pop(next(iter(self._held)))

    def _pop(self, trace_id: str) -> tuple[Trace, int] | None:
        held = self._held.pop(trace_id, None)
        if held is not None:
            self._weight -= held[1]
        return held


def weight_of(run: Run, before: Run | None = None) -> int:
    """Roughly the bytes that a run takes in memory. What it was shown is counted as references where it shares that
    with the run before it, as captured runs do."""
    first = before.calls[-1].input[:1] if before is not None and before.calls else ()
    total, own = 0, set[int]()
    last: tuple[Message, ...] = ()

    def count(messages: tuple[Message, ...]) -> None:
        nonlocal total, last
        total += _REFERENCE * len(messages)
        if first and messages and messages[0] is first[0]:
            return
        same = len(last) if len(last) <= len(messages) and all(map(is_, last, messages)) else 0
        for message in messages[same:]:  # a prompt mostly goes on from the one before
            if id(message) not in own:
                own.add(id(message))
                total += _message(message)
        last = messages

    count(run.messages)
    count(run.history)
    for call in run.calls:
        tokens = sum(len(one or ()) for one in (call.prompt_ids, call.completion_ids, call.logprobs))
        total += _OBJECT + 32 * tokens
        count(call.input)
    for tool in run.tools:
        total += _OBJECT + _size(tool.arguments) + _size(tool.result) + _size(tool.artifact)
    return total + _size(run.input) + _size(run.output) + _size(run.attributes)


def _message(message: Message) -> int:
    return _OBJECT + 3 * len(message.json_text)  # which the spool has made


def _size(value: Any) -> int:
    if isinstance(value, str):
        return 50 + len(value)
    if isinstance(value, Mapping):
        return 60 + sum(len(key) + _size(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return 60 + sum(map(_size, value))
    return 30
