"""How many spans a second each project may send."""

from __future__ import annotations

import time

__all__ = ["RateLimit"]

_BURST = 2.0
"""Seconds of the rate that may come at once."""


class RateLimit:
    """A bucket of tokens for each project. What a request held is known when it was decoded: a project that took more
    than it had waits until that is paid off."""

    def __init__(self, per_second: float | None) -> None:
        self._rate = per_second
        self._left: dict[str, tuple[float, float]] = {}

    def wait(self, project: str) -> float:
        """Seconds until the project may send again, 0 where it may now."""
        if self._rate is None:
            return 0.0
        left = self._now(project)
        return 0.0 if left > 0 else max(0.1, -left / self._rate)

    def spend(self, project: str, spans: int) -> None:
        """Take note of spans that came."""
        if self._rate is not None:
            self._left[project] = (self._now(project) - spans, time.monotonic())

    def _now(self, project: str) -> float:
        assert self._rate is not None
        most = max(1.0, self._rate * _BURST)
        left, at = self._left.get(project, (most, time.monotonic()))
        return min(most, left + (time.monotonic() - at) * self._rate)
