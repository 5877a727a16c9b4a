"""When the requests of many concurrent dialogues become batches: the lockstep barrier, seats and micro-batching.

It knows neither messages nor torch: an engine is anything with a `run(requests)`. One forward pass for all waiting
dialogues is what makes rollouts affordable; a barrier instead of a timer is what makes them repeatable, since asyncio's
order of wake-ups then decides nothing."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import weakref
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

R = TypeVar("R", contravariant=True)
T = TypeVar("T", covariant=True)


class Engine(Protocol[R, T]):
    """Answers a batch: one result a request, in order; an exception in a result's place fails that request alone.

    >>> class Echo:
    ...     def run(self, requests):
    ...         return list(requests)
    >>> asyncio.run(micro_batch(Echo(), "hello"))
    'hello'
    """

    def run(self, requests: Sequence[R]) -> Sequence[T | Exception]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Seat:
    """A dialogue's place in a lockstep. `next_seed()` gives each of its calls its own random stream, derived from
    `seed`."""

    index: int
    seed: int
    lockstep: Lockstep
    _calls: Any = field(default_factory=itertools.count, repr=False)

    def next_seed(self) -> tuple[int, int]:
        """(seed, number of the call in this dialogue): whatever other dialogues do, the same dialogue draws the same
        numbers."""
        return self.seed, next(self._calls)


_current: contextvars.ContextVar[Seat | None] = contextvars.ContextVar("cm2_seat", default=None)


def current_seat() -> Seat | None:
    """The seat of the dialogue whose task (or a child task of it) is running, None in ordinary use."""
    return _current.get()


@dataclass(kw_only=True)
class _Waiting:
    seat: int
    engine: Any
    request: Any
    answer: asyncio.Future[Any]


class Lockstep:
    """A barrier: a batch is run when every live seat waits for a model, its requests in order of seat index.

    All `n_seats` dialogues must run at the same time (each in its own asyncio task), since a seat counts as live from
    the start until it is left: with `n_seats` larger than what a semaphore lets run, nobody would ever be served. A
    dialogue that waits on something else (a tool, a remote model) holds the others up for so long, and no longer.

    A seat that is left — normally, by an error, or cancelled — no longer holds up the rest. An error of the engine
    reaches exactly the dialogues of that batch.

    >>> class Echo:
    ...     def run(self, requests):
    ...         return [f"{request} of {len(requests)}" for request in requests]
    >>> async def dialogue(lockstep, index, echo):
    ...     async with lockstep.seat(index, seed=index):
    ...         return await batched(echo, index)  # as a LocalChatModel does: it finds the seat by itself
    >>> async def dialogues(n):
    ...     lockstep, echo = Lockstep(n), Echo()
    ...     return await asyncio.gather(*(dialogue(lockstep, index, echo) for index in range(n)))
    >>> asyncio.run(dialogues(3))
    ['0 of 3', '1 of 3', '2 of 3']
    """

    def __init__(self, n_seats: int) -> None:
        self._live = set(range(n_seats))
        self._taken: set[int] = set()
        self._waiting: list[_Waiting] = []
        self._running = False

    @asynccontextmanager
    async def seat(self, index: int, *, seed: int) -> AsyncIterator[Seat]:
        """Take seat `index` (0 ≤ index < n_seats, each once) for the enclosed dialogue.

        Raises ValueError for a seat that is taken, given up or unknown.
        """
        if index not in self._live or index in self._taken:
            raise ValueError(
                f"seat {index}: expected a seat that is free, one of {sorted(self._live - self._taken)[:8]}…"
            )
        self._taken.add(index)
        seat = Seat(index=index, seed=seed, lockstep=self)
        token = _current.set(seat)
        try:
            yield seat
        finally:
            _current.reset(token)
            self.leave(index)

    def leave(self, index: int) -> None:
        """Give a seat up, also one that was never taken (a dialogue that could not start). Idempotent."""
        self._live.discard(index)
        self._check()

    async def call(self, seat: Seat, engine: Engine[R, T], request: R) -> T:
        """Wait for the batch and return this request's result; raises what the engine answered or raised for it."""
        if seat.index not in self._live:
            # A child task that outlived its dialogue: serve it alone rather than count it in anybody's batch.
            return await micro_batch(engine, request)
        waiting = _Waiting(
            seat=seat.index, engine=engine, request=request, answer=asyncio.get_running_loop().create_future()
        )
        self._waiting.append(waiting)
        self._check()
        return await waiting.answer  # type: ignore[no-any-return]  # a future of what this engine answers

    def _check(self) -> None:
        self._waiting = [waiting for waiting in self._waiting if not waiting.answer.done()]  # done: cancelled meanwhile
        if self._running or not self._waiting or not self._live <= {waiting.seat for waiting in self._waiting}:
            return
        self._running = True
        # Stable: several requests of one dialogue stay in the order in which it made them.
        batch = sorted(self._waiting, key=lambda waiting: waiting.seat)
        self._waiting = []
        _hold(asyncio.get_running_loop().create_task(self._run(batch)))

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        try:
            engines = list({id(waiting.engine): waiting.engine for waiting in batch}.values())
            for engine in engines:
                await _answer(engine, [waiting for waiting in batch if waiting.engine is engine])
        finally:
            self._running = False
            self._check()


class MicroBatcher:
    """Batches what concurrent callers ask of one engine within `window` seconds; for ordinary use, where nobody sits in
    a lockstep."""

    def __init__(self, engine: Engine[Any, Any], *, window: float = 0.003) -> None:
        self._engine, self._window = engine, window
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def call(self, request: Any) -> Any:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(seat=0, engine=self._engine, request=request, answer=loop.create_future())
        self._waiting.append(waiting)
        if self._task is None:
            self._task = loop.create_task(self._drain())
        return await waiting.answer

    async def _drain(self) -> None:
        try:
            await asyncio.sleep(self._window)
            while self._waiting:  # what arrived during a batch makes the next one at once
                batch, self._waiting = self._waiting, []
                await _answer(self._engine, [waiting for waiting in batch if not waiting.answer.done()])
        finally:
            self._task = None


# One batcher per event loop and engine: futures belong to the loop they were made in.
_batchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakKeyDictionary[Any, MicroBatcher]] = (
    weakref.WeakKeyDictionary()
)


async def micro_batch(engine: Engine[R, T], request: R) -> T:
    """Answer one request together with those that other tasks of this event loop make at the same time."""
    of_loop = _batchers.setdefault(asyncio.get_running_loop(), weakref.WeakKeyDictionary())
    batcher = of_loop.get(engine)
    if batcher is None:
        batcher = of_loop[engine] = MicroBatcher(engine)
    return await batcher.call(request)  # type: ignore[no-any-return]  # what this engine answers


async def batched(engine: Engine[R, T], request: R) -> T:
    """Answer one request: in the lockstep of the current seat if there is one, else in a micro-batch."""
    seat = current_seat()
    return await (micro_batch(engine, request) if seat is None else seat.lockstep.call(seat, engine, request))


async def _answer(engine: Engine[Any, Any], batch: Sequence[_Waiting]) -> None:
    """Run one batch off the event loop and hand out its results; never raises but on cancellation."""
    if not batch:
        return
    try:
        results = await asyncio.get_running_loop().run_in_executor(_worker, engine.run, [w.request for w in batch])
        if len(results) != len(batch):
            raise RuntimeError(f"the engine answered {len(results)} of {len(batch)} requests")
    except BaseException as error:
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(
                    error if isinstance(error, Exception) else RuntimeError("the batch was cancelled")
                )
        if not isinstance(error, Exception):
            raise
        return
    for waiting, result in zip(batch, results, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(result, Exception):
            waiting.answer.set_exception(result)
        else:
            waiting.answer.set_result(result)


# One thread for all models of the process: two batches at once would only fight for the same cores.
_worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cm2-batch")
_tasks: set[asyncio.Task[None]] = set()


def _hold(task: asyncio.Task[None]) -> None:
    """Hold a reference: an event loop keeps only weak ones to its tasks."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
