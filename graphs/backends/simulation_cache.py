"""Where a simulator's replies are known from: the protocol, and the one in memory."""

from __future__ import annotations

from typing import Protocol

from cm2_agent.errors import ToolError
from cm2_agent.llm.memory_cache import LRUMemory


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
        self._replies = LRUMemory[str](size)

    def get(self, key: str) -> str | None:
        return self._replies.get([key]).get(key)

    def put(self, key: str, tool: str, body: str) -> None:
        self._replies.put({key: body})

    def __len__(self) -> int:
        return len(self._replies)


__all__ = ["MemorySimulations", "SimulationCache"]
