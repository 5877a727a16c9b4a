"""What a fork does to the live path: locks are held across it, and the child begins afresh."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol

__all__ = ["Forked", "survive_forks"]


class Forked(Protocol):
    """Whose lock no other thread may hold while the process forks; in the child, `in_child` makes everything new."""

    @property
    def lock(self) -> threading.Lock: ...

    def in_child(self) -> None: ...


_all: weakref.WeakSet[Any] = weakref.WeakSet()
_held: list[Forked] = []


def survive_forks(one: Forked) -> None:
    """Have its lock held across forks, and `in_child` called after each."""
    _all.add(one)


def _before() -> None:
    _held[:] = list(_all)
    for one in _held:
        one.lock.acquire()


def _in_parent() -> None:
    for one in _held:
        one.lock.release()
    _held.clear()


def _in_child() -> None:
    for one in _held:
        one.in_child()
    _held.clear()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
