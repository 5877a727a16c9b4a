"""Traces whose spans are still coming: when each is complete, and the runs that it makes then."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.errors import StoreError
from cm2_agent.incidents import Incidents
from cm2_agent.server.intake import Received
from cm2_agent.server.settings import Settings
from cm2_agent.server.span_pack import holds_root, unpack_spans
from cm2_agent.store.received import ReceivedSpans

__all__ = ["Assembly", "Complete"]

_AT_ONCE = 64
"""How many traces are built together,"""
_BYTES_AT_ONCE = 64 << 20
"""and how many bytes of spans, in memory, they may have; one trace may have more."""
_UNPACKED = 8
"""How many times smaller spans are in the store than in memory, more or less."""
_PAUSE = 1.0
"""Seconds until a store that is away is tried again."""
_KNOWN = 100_000
"""How many traces are known to have been built: a span that comes later needs no root."""
_PRUNE = 60.0
"""Seconds from one removal of old spans to the next."""


@dataclass(frozen=True, kw_only=True)
class Complete:
    """The spans of a trace that is complete, up to a batch. `before`: those of them that stored runs hold already."""

    project: str
    trace: str
    batch: int
    spans: Sequence[SpanRecord]
    before: Sequence[SpanRecord] = ()

    @property
    def again(self) -> bool:
        return bool(self.before)


@dataclass(eq=False)
class _Open:
    """A trace that is not complete. `spans` is None where they are in the store alone."""

    spans: dict[str, SpanRecord] | None = field(default_factory=dict)
    rooted: bool = False
    ready: bool = False
    """Whether it is not to wait for more."""
    last: float = 0.0
    batch: int = 0
    size: int = 0
    """Bytes in memory, of which none are held where `spans` is None."""
    built: bool = False
    """Whether a stored run may hold spans of it already."""


class Assembly:
    """Gathers the spans of each trace, in whatever order and however often they come. When its root has ended and
    nothing came for a while, `build` gets it, and answers which (project, trace) are stored: their spans are settled.
    Those of others stay as they are, for the next start."""

    def __init__(
        self,
        store: ReceivedSpans,
        build: Callable[[Sequence[Complete]], Collection[tuple[str, str]]],
        incidents: Incidents,
        settings: Settings,
    ) -> None:
        self._store, self._build, self._incidents, self._settings = store, build, incidents, settings
        self._changed = threading.Condition()
        self._open: dict[tuple[str, str], _Open] = {}
        self._size = 0
        self._busy = 0
        self._closing: float | None = None
        self._pruned = time.monotonic()
        now = time.monotonic()
        built = store.built(_KNOWN)
        self._built: OrderedDict[tuple[str, str], None] = OrderedDict.fromkeys(built)
        self._all_known = len(built) < _KNOWN  # what is not among them was not built
        for row in store.waiting():  # what an earlier process left
            key = (row.project, row.trace)
            known = self._open.setdefault(key, _Open(spans=None, last=now, rooted=key in self._built))
            known.batch = row.batch
            known.size += len(row.body) * _UNPACKED
            known.rooted = known.rooted or holds_root(row.body)
        self.recovered = len(self._open)
        self._thread = threading.Thread(target=self._run, name="cm2-assembly", daemon=True)
        self._thread.start()

    def add(self, received: Iterable[Received]) -> None:
        """Take note of spans that were stored."""
        now = time.monotonic()
        with self._changed:
            for one in received:
                key = (one.project, one.trace)
                if not self._open:
                    self._changed.notify()
                known = self._open.get(key)
                if known is None:
                    known = self._open[key] = _Open(rooted=key in self._built)
                known.last, known.batch = now, one.batch
                known.rooted = known.rooted or one.rooted
                if known.spans is not None:
                    for span in one.spans:
                        known.spans.setdefault(span.span_id, span)
                    self._size += one.size
                known.size += one.size
            if self._size > self._settings.most_open:
                self._let_go()

    @property
    def open(self) -> int:
        """How many traces are not complete, or not stored yet."""
        with self._changed:
            return len(self._open) + self._busy

    def flush(self, timeout: float) -> bool:
        """Build what has a root now, without waiting for it to be quiet; False where that took longer."""
        deadline = time.monotonic() + timeout
        with self._changed:
            for known in self._open.values():
                known.ready = known.rooted
            self._changed.notify_all()
            while self._busy or any(known.rooted for known in self._open.values()):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.1))
        return True

    def close(self, timeout: float) -> bool:
        """Build what has a root, and end; what has none stays in the store for the next start."""
        done = self.flush(timeout)
        with self._changed:
            self._closing = time.monotonic()
            self._changed.notify_all()
        self._thread.join(max(0.1, timeout))
        return done

    def _let_go(self) -> None:
        """Hold the spans of the traces that were quiet longest in the store alone. The caller holds the lock."""
        for known in sorted(self._open.values(), key=lambda one: one.last):
            if known.spans is not None:
                self._size -= known.size
                known.spans = None
                if self._size <= self._settings.most_open // 2:
                    return

    def _run(self) -> None:
        while True:
            with self._changed:
                taken = self._due()
                while not taken and self._closing is None:
                    self._changed.wait(self._next_due())
                    taken = self._due()
                if not taken:
                    return
            try:
                self._finish(taken)
            except StoreError as error:
                self._incidents.add("the store is away, and received spans wait for it", error)
                self._put_back(taken)
                time.sleep(_PAUSE if self._closing is None else 0.0)  # until the store is tried again
            except BaseException as error:
                self._incidents.add("received spans could not be built", error)
            with self._changed:
                self._busy = 0
                self._changed.notify_all()
            self._prune()

    def _due(self) -> dict[tuple[str, str], _Open]:
        """Take the traces that are complete. The caller holds the lock."""
        now = time.monotonic()
        taken: dict[tuple[str, str], _Open] = {}
        size = 0
        for key, known in self._open.items():
            if known.ready or now >= known.last + self._patience(known):
                taken[key] = known
                size += known.size
                if len(taken) == _AT_ONCE or size >= _BYTES_AT_ONCE:
                    break
        for key, known in taken.items():
            del self._open[key]
            self._size -= known.size if known.spans is not None else 0
            known.built = known.built or not self._all_known or key in self._built
            self._built[key] = None  # from now on: a span that comes while it is built needs no root either
            self._built.move_to_end(key)
        while len(self._built) > _KNOWN:
            self._built.popitem(last=False)
            self._all_known = False
        self._busy = len(taken)
        return taken

    def _next_due(self) -> float | None:
        if not self._open:
            return None
        wait = min(0.0 if known.ready else known.last + self._patience(known) for known in self._open.values())
        return max(0.05, min(wait - time.monotonic(), 1.0))

    def _patience(self, known: _Open) -> float:
        return self._settings.quiet if known.rooted else self._settings.rootless

    def _finish(self, taken: dict[tuple[str, str], _Open]) -> None:
        cold = [key for key, known in taken.items() if known.spans is None]
        stored = self._store.of_traces(cold) if cold else {}
        again = [key for key, known in taken.items() if known.built and key not in stored]
        before = self._store.of_traces(again, built=True) if again else {}
        complete = []
        for (project, trace), known in taken.items():
            key = (project, trace)
            rows = stored.get(key) or before.get(key) or []
            spans: dict[str, SpanRecord] = {}
            built: dict[str, SpanRecord] = {}
            for row in sorted(rows, key=lambda row: not row.built):
                for span in unpack_spans(row.body):
                    spans.setdefault(span.span_id, span)
                    if row.built:
                        built.setdefault(span.span_id, span)
            for span in (known.spans or {}).values():
                spans.setdefault(span.span_id, span)
            complete.append(
                Complete(
                    project=project,
                    trace=trace,
                    batch=known.batch,
                    spans=_ordered(spans),
                    before=_ordered(built),
                )
            )
        done = self._build(complete)
        self._store.settle(((*key, taken[key].batch) for key in done), keep=self._settings.late > 0)

    def _put_back(self, taken: dict[tuple[str, str], _Open]) -> None:
        with self._changed:
            for key, known in taken.items():
                newer = self._open.get(key)
                if newer is None:
                    self._open[key] = known
                    self._size += known.size if known.spans is not None else 0
                else:  # its spans are read from the store
                    self._size -= newer.size if newer.spans is not None else 0
                    newer.spans = None
                    newer.size += known.size
                    newer.rooted = newer.rooted or known.rooted

    def _prune(self) -> None:
        if time.monotonic() < self._pruned + _PRUNE:
            return
        self._pruned = time.monotonic()
        try:
            self._store.prune(time.time_ns() - int(self._settings.late * 1e9))
        except StoreError as error:
            self._incidents.add("old spans could not be removed", error)


def _ordered(spans: dict[str, SpanRecord]) -> list[SpanRecord]:
    """In one order, whatever the order in which they came."""
    return sorted(spans.values(), key=lambda span: (span.start, span.end, span.span_id))
