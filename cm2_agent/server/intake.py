"""The intake: requests are decoded and stored by one thread, many in one transaction, and answered once that is
committed."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.errors import StoreError
from cm2_agent.incidents import Incidents
from cm2_agent.server.body import BodyTooLarge, MalformedBody
from cm2_agent.server.decoded import Decoded
from cm2_agent.server.span_pack import pack_spans
from cm2_agent.store.received import Arrived, ReceivedSpans

__all__ = ["Intake", "IntakeFull", "Outcome", "Received"]

_AT_ONCE = 32 << 20
"""Bytes of requests, as they are unpacked, that one transaction stores: no more are decoded before it is committed."""
_SPAN = 1_000
"""Bytes of a span in memory beside its attributes."""


class IntakeFull(Exception):
    """As much is held in memory as may."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """Spans of one trace that were stored."""

    project: str
    trace: str
    batch: int
    spans: Sequence[SpanRecord]
    rooted: bool
    """Whether a root is among them, or a span whose parent is in another process."""
    size: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a request: the spans that were taken, or the HTTP status and the words of a refusal."""

    decoded: Decoded | None = None
    status: int = 200
    message: str = ""


@dataclass(eq=False)
class _Waiting:
    project: str
    decode: Callable[[], Decoded]
    size: int
    answer: Callable[[Outcome], None]
    outcome: Outcome | None = None


class Reading:
    """A request that is being read. `add` raises IntakeFull where no more may be held."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size = 0

    def add(self, size: int) -> None:
        if self._intake.is_full:
            raise IntakeFull
        self.size += size
        self._intake._read += size


class Intake:
    """Takes requests from any thread; `on_stored` hears what was committed, before it is acknowledged."""

    def __init__(
        self,
        store: ReceivedSpans,
        on_stored: Callable[[Sequence[Received]], None],
        incidents: Incidents,
        *,
        most_waiting: int,
    ) -> None:
        self._store, self._on_stored, self._incidents = store, on_stored, incidents
        self._most = most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._size = 0
        self._read = 0
        self._closing = False
        self._batch = store.last_batch()
        self.spans = self.requests = 0
        self._thread = threading.Thread(target=self._run, name="cm2-intake", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether as much waits, or is being read, as may."""
        return self._size + self._read >= self._most

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """The reading of a request on the event loop: what came of its body counts as waiting meanwhile."""
        held = Reading(self)
        try:
            yield held
        finally:
            self._read -= held.size

    async def take(self, project: str, decode: Callable[[], Decoded], size: int) -> Outcome:
        """Have a request decoded and stored; returns when that is committed, or refused."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not future.done():  # the client may have left
                future.set_result(outcome)

        def answer(outcome: Outcome) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(settle, outcome)

        self.put(project, decode, size, answer)
        return await future

    def put(self, project: str, decode: Callable[[], Decoded], size: int, answer: Callable[[Outcome], None]) -> None:
        """The same for whoever has no event loop: `answer` is called from the intake's thread."""
        with self._changed:
            if self._closing:
                answer(Outcome(status=503, message="the collector is shutting down"))
                return
            self._waiting.append(_Waiting(project, decode, size, answer))
            self._size += size
            self._changed.notify()

    def close(self, timeout: float) -> bool:
        """Store what waits, and end. False where that took longer than so many seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                taken, size = [], 0
                while self._waiting and size < _AT_ONCE:
                    taken.append(self._waiting.popleft())
                    size += taken[-1].size
            self._finish(taken)

    def _finish(self, taken: Sequence[_Waiting]) -> None:
        """Store and answer these requests, in as many transactions as their unpacked sizes ask for."""
        waiting = deque(taken)
        while waiting:
            some: list[_Waiting] = []
            try:
                self._store_some(waiting, some)
            except BaseException as error:  # nothing that goes wrong with some requests may cost later ones
                self._incidents.add("requests could not be stored", error)
                for one in some:
                    if one.outcome is None or one.outcome.decoded is not None:
                        one.outcome = Outcome(status=503, message="the spans could not be stored")
            with self._changed:
                self._size -= sum(one.size for one in some)
            for one in some:
                assert one.outcome is not None
                one.answer(one.outcome)

    def _store_some(self, waiting: deque[_Waiting], some: list[_Waiting]) -> None:
        """Move as many requests to `some` as one transaction takes, and store them."""
        self._batch += 1
        good: list[_Waiting] = []
        arrived: list[Arrived] = []
        received: list[Received] = []
        unpacked = 0
        while waiting and unpacked < _AT_ONCE:
            one = waiting.popleft()
            some.append(one)
            found = self._decode(one)
            if found is not None:
                good.append(one)
                arrived += [row for row, _ in found]
                received += [came for _, came in found]
                unpacked += max(one.size, sum(came.size for _, came in found))
        if arrived:
            try:
                self._store.add(arrived, self._batch)
            except StoreError as error:
                self._incidents.add("the store is away, and the collector takes nothing", error)
                for one in good:
                    one.outcome = Outcome(status=503, message="the store cannot be written; send the spans again later")
                return
            self._on_stored(received)
        self.requests += len(good)
        self.spans += sum(len(one.spans) for one in received)

    def _decode(self, one: _Waiting) -> list[tuple[Arrived, Received]] | None:
        """What the request holds of each trace; None where it is refused."""
        try:
            decoded = one.decode()
            found = list(self._packed(one, decoded))
        except BodyTooLarge as error:
            one.outcome = Outcome(status=413, message=str(error))
        except MalformedBody as error:
            one.outcome = Outcome(status=400, message=str(error))
        except RecursionError:
            one.outcome = Outcome(status=400, message="the body is nested too deeply")
        except (
            TypeError,
            ValueError,
            OverflowError,
        ) as error:  # what no check has foreseen may not cost other requests
            self._incidents.add("a request could not be read", error)
            one.outcome = Outcome(status=400, message="the spans cannot be stored as they are")
        else:
            one.outcome = Outcome(decoded=decoded)
            return found
        return None

    def _packed(self, one: _Waiting, decoded: Decoded) -> Iterator[tuple[Arrived, Received]]:
        for trace, spans in by_trace(decoded.spans):
            rooted = trace in decoded.rooted
            yield (
                Arrived(one.project, trace, pack_spans(spans, rooted=rooted)),
                Received(
                    project=one.project,
                    trace=trace,
                    batch=self._batch,
                    spans=spans,
                    rooted=rooted,
                    size=_SPAN * len(spans) + decoded.size * len(spans) // len(decoded.spans),
                ),
            )


def by_trace(spans: Iterable[SpanRecord]) -> Iterable[tuple[str, list[SpanRecord]]]:
    """The spans of each trace."""
    found: dict[str, list[SpanRecord]] = {}
    for span in spans:
        found.setdefault(span.trace_id, []).append(span)
    return found.items()
