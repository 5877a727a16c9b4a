"""What went wrong beside the user's call: counted and logged once a kind, never raised; apart since capture and worker both meet it."""

from __future__ import annotations

import logging
import threading
from collections import Counter

logger = logging.getLogger("cm2_agent")

__all__ = ["Incidents", "logger"]


class Incidents:
    """Counts of failures by kind. `drain` hands over what was counted since the last drain, so that a store can keep it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()

    def add(self, kind: str, error: BaseException | None = None, count: int = 1) -> None:
        """Count a failure; the first of its kind is logged with its traceback. Never raises."""
        with self._lock:
            first = kind not in self._total
            self._total[kind] += count
            self._pending[kind] += count
        if first:
            logger.warning("cm2: %s: %s (logged once; later ones are only counted)", kind, error or "", exc_info=error)

    @property
    def counts(self) -> dict[str, int]:
        """Everything counted in this process."""
        with self._lock:
            return dict(self._total)

    def drain(self) -> dict[str, int]:
        """What no store has been told yet. The caller gives back with `restore` what it could not store."""
        with self._lock:
            pending, self._pending = self._pending, Counter()
        return dict(pending)

    def restore(self, counts: dict[str, int]) -> None:
        with self._lock:
            self._pending.update(counts)
