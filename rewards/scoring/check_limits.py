"""What check functions may take, and which of them are not asked for now because they took more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from cm2_agent.incidents import Incidents

CHECK_TIMEOUT = 2.0
"""Seconds that a check may take in one scope, by the clock."""
TIMED_OUT = "check timed out"
DISABLED = "check disabled"
REST = 60.0
"""Seconds for which a check rests that ran out of time too often."""


class CheckLimits:
    """What check functions may take: seconds in one scope (`timeout`), and how often in a row one may run out of them
    before it rests for a minute (`rest_after`; None: it never does). What goes wrong is counted in `incidents`.

    Raises ValueError: a timeout that is no positive number."""

    def __init__(self, timeout: float = CHECK_TIMEOUT, *, rest_after: int | None = None) -> None:
        if not 0 < timeout < float("inf"):
            raise ValueError(f"check_timeout is {timeout}; expected seconds that a check may take, above 0")
        self.timeout, self.rest_after = timeout, rest_after
        self.incidents = Incidents()
        self._overruns: dict[int, tuple[int, float]] = {}  # of a function: how many in a row, and the end of its rest

    def answered(self, function: Callable[..., Any]) -> None:
        self._overruns.pop(id(function), None)

    def overran(self, function: Callable[..., Any]) -> None:
        count = self._overruns.get(id(function), (0, 0.0))[0] + 1
        rests = self.rest_after is not None and count >= self.rest_after
        self._overruns[id(function)] = (count, time.monotonic() + REST if rests else 0.0)

    def rests(self, function: Callable[..., Any]) -> bool:
        return id(function) in self._overruns and time.monotonic() < self._overruns[id(function)][1]


class StuckChecks:
    """Functions whose call has not ended, with the threads that they hang in."""

    def __init__(self) -> None:
        self._threads: dict[int, tuple[Callable[..., Any], list[threading.Thread]]] = {}

    def add(self, function: Callable[..., Any], thread: threading.Thread) -> None:
        _, threads = self._threads.setdefault(id(function), (function, []))
        threads.append(thread)

    def holds(self, function: Callable[..., Any]) -> bool:
        if id(function) not in self._threads:
            return False
        _, threads = self._threads[id(function)]
        if any(thread.is_alive() for thread in threads):
            return True
        del self._threads[id(function)]
        return False


__all__ = ["CHECK_TIMEOUT", "DISABLED", "REST", "TIMED_OUT", "CheckLimits", "StuckChecks"]
