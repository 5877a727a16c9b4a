"""LRUMemory: answers that are known already, in memory, for judges and simulators alike."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class LRUMemory(Generic[T]):
    """The `size` values last used, for as long as the process lives. May be used from any thread.

    Raises ValueError for a size below 1.

    >>> memory = LRUMemory[str](size=2)
    >>> memory.put({"a": "first"})
    >>> memory.put({"a": "second", "b": "other"})
    >>> memory.get(["a", "b", "c"])
    {'a': 'first', 'b': 'other'}
    """

    def __init__(self, size: int = 65_536) -> None:
        if size < 1:
            raise ValueError(f"a cache of {size} entries was asked for; expected 1 or more")
        self._values: LRUCache[str, T] = LRUCache(size)
        self._lock = threading.Lock()

    def get(self, keys: Sequence[str]) -> dict[str, T]:
        """What is known of the keys."""
        with self._lock:
            return {key: self._values[key] for key in keys if key in self._values}

    def put(self, values: Mapping[str, T]) -> None:
        """The first value under a key stays: whoever asked twice gets one answer."""
        with self._lock:
            for key, value in values.items():
                self._values.setdefault(key, value)

    def __len__(self) -> int:
        return len(self._values)


__all__ = ["LRUMemory"]
