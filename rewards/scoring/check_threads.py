"""Threads for check functions, each of which has a limit of time: one that hangs costs its own verdict alone.

All functions of a trace are handed to a thread at once, which notes which one it began when; who waits for the answers
is the watchdog. A function that runs out of time has an exception raised in its thread. One that does not end by that,
as in a call into C, is abandoned with its thread, and is not asked again while that thread lives.

What holds the interpreter's lock all the while, as a pattern of `re` that backtracks without end does, stops every
thread of the process, the watchdog too. Patterns of checklists are RE2's, which take linear time."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from .check_limits import DISABLED, REST, TIMED_OUT, CheckLimits, StuckChecks
from .shaping import ItemColumn

_GRACE = 0.5
"""Seconds in which a check that was stopped has to end."""
_CROWDED = 0.05
"""Seconds that functions wait for a busy thread before another is started."""
_IDLE = 1.0
"""Seconds that a thread without work waits for more."""
_MOST_THREADS = 8
_COMPUTES = 0.05
"""The share of the time that a thread must have the processor to be one that computes; others want it too."""
_TICK = 0.5
_LATE = 0.25
"""Seconds by which the watchdog may oversleep; more is time in which the process stood still, which no check used."""


class CheckStop(BaseException):
    """Raised in the thread of a check that ran out of time."""


@dataclass(frozen=True, kw_only=True)
class CheckCall:
    """A check function to ask about one scope; `ask` must not raise anything but CheckStop. The answer goes into
    `columns`, at the place `at`."""

    ask: Callable[[], ItemColumn]
    function: Callable[..., Any]
    item: str
    columns: list[ItemColumn | None]
    at: int


def run_calls(calls: Sequence[CheckCall], limits: CheckLimits) -> None:
    """Fill the columns of the calls. Blocks until all have answered or run out of time."""
    if not calls:
        return
    batch = _Batch(calls, limits)
    finished = threading.Event()
    batch.when_done(finished.set)
    with _Watched(batch):
        while not finished.wait(batch.patience()):
            batch.look()
    batch.fill()


async def run_calls_async(calls: Sequence[CheckCall], limits: CheckLimits) -> None:
    """The same without blocking the event loop."""
    if not calls:
        return
    batch = _Batch(calls, limits)
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    batch.when_done(lambda: _call_soon(loop, lambda: _wake(woken)))
    with _Watched(batch):
        while True:
            timer = loop.call_later(batch.patience(), _wake, woken)
            await woken
            timer.cancel()
            if batch.done:
                break
            woken = loop.create_future()
            batch.look()
            if batch.done:
                break
    batch.fill()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop was closed while a check ran: nobody waits any more
        return


class _Batch:
    """The calls of one trace on their way through a thread. `lock` guards `at`, `since`, `worker` and the columns."""

    def __init__(self, calls: Sequence[CheckCall], limits: CheckLimits) -> None:
        self.calls, self.limits = calls, limits
        self.lock = threading.Lock()
        self.done = False
        self.worker: _Worker | None = None
        self.at = 0
        self._since = time.monotonic()
        self._expected = self._since
        self._stopped: float | None = None
        self._columns: list[ItemColumn | None] = [None] * len(calls)
        self._on_done: Callable[[], None] = lambda: None

    def when_done(self, call: Callable[[], None]) -> None:
        self._on_done = call

    def fill(self) -> None:
        """Hand the answers over to who asked, all at once: a call that is abandoned reaches no column of theirs."""
        for call, column in zip(self.calls, self._columns, strict=True):
            call.columns[call.at] = column

    # -- in the worker's thread

    def work(self, worker: _Worker) -> None:
        while True:
            with self.lock:
                if self.done or worker.retired or (self.worker is not None and self.worker is not worker):
                    return None
                self.worker = worker
                self._skip_disabled()
                if self.at == len(self.calls):
                    return self._finish()
                call, self._since = self.calls[self.at], time.monotonic()
            column = call.ask()
            with self.lock:
                if worker.retired:
                    return None
                self._columns[self.at] = column
                self.at += 1
                self.limits.answered(call.function)

    def _skip_disabled(self) -> None:
        while self.at < len(self.calls):
            function = self.calls[self.at].function
            if _stuck.holds(function):
                why = "an earlier call of the check has not ended, and it is not asked again before that"
            elif self.limits.rests(function):
                why = f"the check ran out of time {self.limits.rest_after} times in a row and rests for {REST:g} s"
            else:
                return
            self._columns[self.at] = _null(DISABLED, why)
            self.at += 1

    def _finish(self) -> None:
        self.done = True
        self._on_done()

    # -- in the thread of who waits

    def patience(self) -> float:
        """Seconds until the next look."""
        now = time.monotonic()
        if self._stopped is not None:
            pause = 0.01
        elif self.worker is None:
            pause = _CROWDED
        else:
            pause = min(_TICK, max(0.001, self._since + self.limits.timeout - now))
        self._expected = now + pause
        return pause

    def look(self) -> None:
        """Stop or abandon the check that is out of time, and see to it that the others are asked."""
        now = time.monotonic()
        with self.lock:
            worker = self.worker
            if self.done:
                return
            if worker is None:
                with suppress(RuntimeError):  # no thread can be started: it waits for a busy one
                    _pool.grow()
                return
            if now - self._expected > _LATE:
                self._since += now - self._expected
            if self._stopped is None:
                if now - self._since < self.limits.timeout:
                    return
                self._stopped = now
                worker.stop()
                return
            call = self.calls[self.at]
            if worker.thread.is_alive():
                if now - self._stopped < _GRACE:
                    worker.stop()  # a check may catch what it is sent, and go on
                    return
                _stuck.add(call.function, worker.thread)
                self.limits.incidents.add(f"the check {call.item} does not end: it is not asked again while it runs")
            seconds = f"{self.limits.timeout:g} s"
            self._columns[self.at] = _null(TIMED_OUT, f"the check took longer than {seconds} and was stopped")
            self.limits.incidents.add(f"the check {call.item} took longer than {seconds}")
            self.limits.overran(call.function)
            self.at, self._stopped, self.worker = self.at + 1, None, None
            if self.at == len(self.calls):
                self._finish()
                return
        try:
            _pool.submit(self)
        except RuntimeError as error:
            self.give_up(error)

    def leave(self) -> None:
        """Nobody waits any more: what runs is stopped, and nothing else is begun."""
        with self.lock:
            if not self.done:
                self.done = True
                if self.worker is not None:
                    self.worker.stop()
                    _stuck.add(self.calls[self.at].function, self.worker.thread)

    def give_up(self, error: BaseException) -> None:
        """There is no thread for it: nothing is asked any more."""
        why = f"there was no thread for the check: {type(error).__name__}"
        missing = ItemColumn(value=None, reason="check failed", cause="infrastructure", explanation=why)
        with self.lock:
            self._columns[self.at :] = [missing] * (len(self.calls) - self.at)
            self._finish()


class _Watched:
    """A batch that is at work within the block."""

    def __init__(self, batch: _Batch) -> None:
        self._batch = batch

    def __enter__(self) -> None:
        try:
            _pool.submit(self._batch)
        except RuntimeError as error:  # the interpreter is ending, or the system has no thread left
            self._batch.give_up(error)

    def __exit__(self, *error: object) -> None:
        if not self._batch.done:
            self._batch.leave()


class _Worker:
    """A thread that works off batches. Once `stop` was called it is `retired`: it takes no more, since the exception
    may reach it late."""

    def __init__(self, pool: _Pool, batch: _Batch) -> None:
        self.retired = False
        self._looked, self._used, self._computes = time.monotonic(), 0.0, True
        self.inbox: SimpleQueue[_Batch] = SimpleQueue()
        self._pool = pool
        self._first: _Batch | None = batch
        self.thread = threading.Thread(target=self._run, name="cm2-checks", daemon=True)

    def stop(self) -> None:
        """Raise CheckStop in the thread, at its next step in Python."""
        if not self.retired:
            self.retired = True
            self._pool.lose(self)
        if self.thread.ident is not None and self.thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident), ctypes.py_object(CheckStop))

    def computes(self) -> bool:
        """Whether it rather used the processor lately than slept."""
        now = time.monotonic()
        if now - self._looked >= _CROWDED:
            used = _processor_time(self.thread)
            self._computes = used - self._used > _COMPUTES * (now - self._looked)
            self._looked, self._used = now, used
        return self._computes

    def _run(self) -> None:
        batch, self._first = self._first, None
        try:
            while batch is not None:
                batch.work(self)
                batch = None if self.retired else self._pool.take(self)
        except CheckStop:
            return
        except BaseException as error:  # there is no memory left, say
            self._pool.lose(self)
            if batch is not None:
                batch.give_up(error)


class _Pool:
    """The process's threads for checks: one, and more while functions wait for it; without work they end."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """In a child process there are no threads."""
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._waiting: deque[_Batch] = deque()

    def submit(self, batch: _Batch) -> None:
        with self._lock:
            if self._idle:
                self._idle.pop().inbox.put(batch)
            elif not self._workers:
                self._start(batch)
            else:
                self._waiting.append(batch)

    def grow(self) -> None:
        """Start a thread more where functions wait for others that sleep. Beside one that computes it would only take
        the interpreter's lock from the application."""
        with self._lock:
            computing = [worker.computes() for worker in self._workers]
            if self._waiting and len(self._workers) < _MOST_THREADS and not any(computing):
                self._start(self._waiting.popleft())

    def take(self, worker: _Worker) -> _Batch | None:
        """The next batch for a worker, None where it shall end."""
        with self._lock:
            if worker.retired:
                return None
            if self._waiting:
                return self._waiting.popleft()
            self._idle.append(worker)
        try:
            return worker.inbox.get(timeout=_IDLE)
        except Empty:
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)
                    self._workers.discard(worker)
                    return None
        return worker.inbox.get()  # it came at the last moment

    def lose(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
            if self._waiting and not self._workers:
                self._start(self._waiting.popleft())

    def _start(self, batch: _Batch) -> None:
        worker = _Worker(self, batch)
        worker.thread.start()
        self._workers.add(worker)


def _processor_time(thread: threading.Thread) -> float:
    """The seconds of processor time that a thread has had; 0 where the system does not say."""
    try:
        with open(f"/proc/self/task/{thread.native_id}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _null(reason: str, explanation: str) -> ItemColumn:
    """A dialogue can bring it about that a check runs long, so the dialogue is held to be the cause."""
    return ItemColumn(value=None, reason=reason, cause="content", explanation=explanation)


_pool = _Pool()
_stuck = StuckChecks()

__all__ = ["CheckCall", "CheckStop", "run_calls", "run_calls_async"]
