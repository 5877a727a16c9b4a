"""Simulated answers that are known already: what a cache of them must do, and one in memory; apart from the simulator,
which makes the keys, and from the store, whose `SQLStore.simulation_cache()` keeps them for good."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol

from cm2_agent.errors import ToolError


class SimulationCache(Protocol):
    """Replies by key; `body` is the reply's JSON text. A `put` under a known key changes nothing: whoever asked twice
    gets one answer. Both methods may be called from any thread.

    >>> class Nothing:
    ...     def get(self, key):
    ...         return None
    ...     def put(self, key, tool, body):
    ...         pass
    """

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, tool: str, body: str) -> None: ...


class MemorySimulations:
    """The `size` replies last used, for as long as the process lives.

    >>> cache = MemorySimulations()
    >>> cache.put("k", "get_order", "{}")
    >>> cache.get("k"), cache.get("other")
    ('{}', None)
    """

    def __init__(self, size: int = 65_536) -> None:
        if size < 1:
            raise ToolError(f"a cache of {size} simulated answers was asked for; expected 1 or more")
        self._size = size
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def put(self, key: str, tool: str, body: str) -> None:
        with self._lock:
            self._known.setdefault(key, body)
            self._known.move_to_end(key)
            while len(self._known) > self._size:
                self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


__all__ = ["MemorySimulations", "SimulationCache"]
