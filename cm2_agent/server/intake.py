"""The intake: requests are decoded and stored by one thread, many in one transaction, and answered once that is
committed."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.errors import StoreError
from cm2_agent.incidents import Incidents
from cm2_agent.server.body import BodyTooLarge, MalformedBody
from cm2_agent.server.decoded import Decoded
from cm2_agent.server.span_pack import pack_spans
from cm2_agent.store.received import Arrived, ReceivedSpans

__all__ = ["Intake", "Outcome", "Received"]

_AT_ONCE = 32 << 20
"""Bytes of requests that one transaction stores at most."""


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
        self._closing = False
        self._batch = store.last_batch()
        self.spans = self.requests = 0
        self._thread = threading.Thread(target=self._run, name="cm2-intake", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether as much waits as may."""
        return self._size >= self._most

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
            try:
                self._store_all(taken)
            except BaseException as error:  # nothing that goes wrong with some requests may cost later ones
                self._incidents.add("requests could not be stored", error)
                for one in taken:
                    one.outcome = one.outcome or Outcome(status=503, message="the spans could not be stored")
            with self._changed:
                self._size -= size
            for one in taken:
                assert one.outcome is not None
                one.answer(one.outcome)

    def _store_all(self, taken: Sequence[_Waiting]) -> None:
        self._batch += 1
        good: list[_Waiting] = []
        arrived: list[Arrived] = []
        received: list[Received] = []
        for one in taken:
            decoded = self._decode(one)
            if decoded is None:
                continue
            good.append(one)
            for trace, spans in by_trace(decoded.spans):
                body = pack_spans(spans, rooted=trace in decoded.rooted)
                arrived.append(Arrived(one.project, trace, body))
                size = 600 * len(spans) + len(body) * 8
                received.append(
                    Received(
                        project=one.project,
                        trace=trace,
                        batch=self._batch,
                        spans=spans,
                        rooted=trace in decoded.rooted,
                        size=size,
                    )
                )
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

    def _decode(self, one: _Waiting) -> Decoded | None:
        try:
            decoded = one.decode()
        except BodyTooLarge as error:
            one.outcome = Outcome(status=413, message=str(error))
        except MalformedBody as error:
            one.outcome = Outcome(status=400, message=str(error))
        except RecursionError:
            one.outcome = Outcome(status=400, message="the body is nested too deeply")
        else:
            one.outcome = Outcome(decoded=decoded)
            return decoded
        return None


def by_trace(spans: Iterable[SpanRecord]) -> Iterable[tuple[str, list[SpanRecord]]]:
    """The spans of each trace."""
    found: dict[str, list[SpanRecord]] = {}
    for span in spans:
        found.setdefault(span.trace_id, []).append(span)
    return found.items()
