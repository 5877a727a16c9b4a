"""Failures in the background: counted, logged once for each kind, never raised, and without what people wrote."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePath

from cm2_agent.errors import MissingExtra, StoreError
from cm2_agent.types.secrets import mask_secrets

logger = logging.getLogger("cm2_agent")

__all__ = ["Incidents", "logger"]

_LONGEST, _LOOKED_AT = 500, 4000
"""Characters of an exception's text that are kept, and that are masked before it is cut."""


class Incidents:
    """Counts of failures by kind. `drain` hands over what was counted since the last drain, so that a store can keep
    it.

    An exception's text may quote a dialogue or a key: it is never logged, but for those of the store and the operating
    system (the whole traceback is, at the level DEBUG). What `drain` hands over has gone through `mask`."""

    def __init__(self, mask: Callable[[str], str] = mask_secrets) -> None:
        self._masks = [mask]
        self._lock = threading.Lock()
        self._total: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        self._details: dict[str, str] = {}

    def mask_too(self, mask: Callable[[str], str]) -> None:
        """Have what is counted from now on go through one more mask."""
        if mask not in self._masks:
            self._masks.append(mask)

    def add(self, kind: str, error: BaseException | None = None, *, number: int = 1) -> None:
        """Count a failure, or a `number` of them; the first of its kind is logged. Never raises."""
        detail = "" if error is None else self._detail(error)
        with self._lock:
            first = kind not in self._total
            self._total[kind] += number
            self._pending[kind] += number
            self._details[kind] = detail
        if first:
            shown = detail if isinstance(error, StoreError | MissingExtra | OSError) else _place(error)
            logger.warning("%s%s (logged once; later ones are only counted)", kind, f": {shown}" if shown else "")
            logger.debug("%s", kind, exc_info=error)

    def _detail(self, error: BaseException) -> str:
        name = type(error).__name__
        try:
            text = f"{name}: {error}"[:_LOOKED_AT]
            for mask in self._masks:
                text = mask(text)
            return text[:_LONGEST]
        except Exception:  # an exception whose text cannot be made, or a mask that fails on it
            return name

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


def _place(error: BaseException | None) -> str:
    """The exception's type and where it was raised; nothing of its text."""
    if error is None:
        return ""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = type(error).__name__
    return name if trace is None else f"{name} in {PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
