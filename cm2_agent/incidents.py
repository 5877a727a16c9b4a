"""Failures in the background: counted, logged once for each kind, never raised."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping

logger = logging.getLogger("cm2_agent")

__all__ = ["Incidents", "logger"]


class Incidents:
    """Counts of failures by kind. `drain` hands over what was counted since the last drain, so that a store can keep
    it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        self._details: dict[str, str] = {}

    def add(self, kind: str, error: BaseException | None = None) -> None:
        """Count a failure; the first of its kind is logged with its traceback. Never raises."""
        detail = "" if error is None else f"{type(error).__name__}: {error}"[:500]
        with self._lock:
            first = kind not in self._total
            self._total[kind] += 1
            self._pending[kind] += 1
            self._details[kind] = detail
        if first:
            logger.warning("%s: %s (logged once; later ones are only counted)", kind, detail, exc_info=error)

    @property
    def counts(self) -> dict[str, int]:
        """Everything counted in this process."""
        with self._lock:
            return dict(self._total)

    @property
    def pending(self) -> bool:
        """Whether something was counted since the last `drain`."""
        return bool(self._pending)

    def drain(self) -> dict[str, tuple[int, str]]:
        """`{kind: (count, last detail)}` since the last `drain`. The caller hands back with `restore` what it could not
        store."""
        with self._lock:
            pending, self._pending = self._pending, Counter()
            return {kind: (count, self._details[kind]) for kind, count in pending.items()}

    def restore(self, counts: Mapping[str, tuple[int, str]]) -> None:
        """Make pending again what could not be stored."""
        with self._lock:
            self._pending.update({kind: count for kind, (count, _) in counts.items()})
