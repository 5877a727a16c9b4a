"""What a fork does to the live path: locks are held across it, no thread of ours is inside a database meanwhile, and
the child begins afresh.

A child that is forked while another thread is inside SQLite inherits its locks, and nobody who would release them."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from asyncio import _get_running_loop, _set_running_loop
from typing import Any, Protocol

__all__ = ["DATABASE", "Forked", "survive_forks"]

_PATIENCE = 1.0
"""Seconds for which a fork waits for a transaction; one that takes longer is waiting itself, and holds nothing."""


class Forked(Protocol):
    """Whose lock no other thread may hold while the process forks; in the child, `in_child` makes everything new."""

    @property
    def lock(self) -> threading.Lock: ...

    def in_child(self) -> None: ...


class _Loops(threading.local):
    """The loops that this thread has put aside, the innermost last."""

    def __init__(self) -> None:
        self.aside: list[asyncio.AbstractEventLoop | None] = []


class _Gate:
    """`with DATABASE:` around what must not be forked through. Any number of threads may be inside.

    These threads are ours and may block. One that scores has an event loop of its own, which is put aside meanwhile:
    what watches over event loops, as `langgraph dev` does in the whole process, would refuse the call."""

    def __init__(self) -> None:
        self._loops = _Loops()
        self.reset()

    def reset(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = self._forks = 0

    def __enter__(self) -> None:
        with self._changed:
            while self._forks:
                self._changed.wait()
            self._inside += 1
        self._loops.aside.append(_get_running_loop())
        _set_running_loop(None)

    def __exit__(self, *_: object) -> None:
        _set_running_loop(self._loops.aside.pop())
        with self._changed:
            self._inside -= 1
            if self._forks and not self._inside:
                self._changed.notify_all()

    def close(self) -> None:
        """Wait until nobody is inside, and let nobody in."""
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._inside, _PATIENCE)

    def open(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()


DATABASE = _Gate()
_all: weakref.WeakSet[Any] = weakref.WeakSet()
_held: list[Forked] = []


def survive_forks(one: Forked) -> None:
    """Have its lock held across forks, and `in_child` called after each."""
    _all.add(one)


def _before() -> None:
    DATABASE.close()
    _held[:] = list(_all)
    for one in _held:
        one.lock.acquire()


def _in_parent() -> None:
    for one in _held:
        one.lock.release()
    _held.clear()
    DATABASE.open()


def _in_child() -> None:
    DATABASE.reset()
    for one in _held:
        one.in_child()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
