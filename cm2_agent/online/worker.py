"""One daemon thread with an event loop of its own, fed through a bounded queue."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from cm2_agent.incidents import Incidents

_T = TypeVar("_T")


class Worker(Generic[_T]):
    """Calls `await handle(item)` for every item submitted, one after the other, in a background thread that starts with
    the first item.

    A process that forks gets a fresh worker in the child, and calls `forget` there; what was waiting is handled by the
    parent alone."""

    def __init__(
        self,
        handle: Callable[[_T], Awaitable[None]],
        *,
        size: int,
        incidents: Incidents,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._handle = handle
        self._forget = forget
        self._size = size
        self._incidents = incidents
        self._reset()
        if hasattr(os, "register_at_fork"):
            method = weakref.WeakMethod(self._in_child)

            def in_child() -> None:
                if (reset := method()) is not None:
                    reset()

            os.register_at_fork(after_in_child=in_child)

    def _in_child(self) -> None:
        self._reset()
        self._forget()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[_T] = deque()
        self._unfinished = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None

    def submit(self, item: _T) -> None:
        """Queue an item. Returns at once and never raises: what finds the queue full is dropped, counted and logged
        once."""
        try:
            with self._changed:
                if len(self._items) >= self._size:
                    dropped = True
                else:
                    dropped = False
                    self._items.append(item)
                    self._unfinished += 1
                    self._start()
                    if self._loop is not None and self._wake is not None:
                        self._loop.call_soon_threadsafe(self._wake.set)
            if dropped:
                self._incidents.add(f"dropped: more than {self._size} deliveries were waiting")
        except Exception as error:  # no thread can be started any more, or the loop is gone: the interpreter is ending
            self._incidents.add("dropped: the background thread is gone", error)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything submitted so far is handled; False if that took longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._unfinished:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="cm2-deliveries", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._consume())

    async def _consume(self) -> None:
        wake = asyncio.Event()
        with self._changed:
            self._loop, self._wake = asyncio.get_running_loop(), wake
        while True:
            with self._changed:
                item = self._items.popleft() if self._items else None
                if item is None:
                    wake.clear()
            if item is None:
                await wake.wait()
                continue
            try:
                await self._handle(item)
            except Exception as error:
                self._incidents.add("a delivery failed", error)
            finally:
                with self._changed:
                    self._unfinished -= 1
                    if not self._unfinished:
                        self._changed.notify_all()
