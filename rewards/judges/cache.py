"""Verdicts that are known already: what a cache of them must do, one in memory, and one seen through other keys.

A key names everything that a verdict depends on (item, returned model, settings, prompt version, evidence window,
vote). A NULL that is no judgement (time-out, malformed reply) is never cached, so that it is asked again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cm2_agent.llm.memory_cache import LRUMemory
from cm2_agent.types.score import Verdict


class VerdictCache(Protocol):
    """Verdicts by key. Both methods may be called from any thread, and again with the same keys.

    >>> class Nothing:
    ...     def get(self, keys):
    ...         return {}
    ...     def put(self, verdicts):
    ...         pass
    """

    def get(self, keys: Sequence[str]) -> dict[str, Verdict]: ...

    def put(self, verdicts: Mapping[str, Verdict]) -> None: ...


class MemoryCache(LRUMemory[Verdict]):
    """The `size` verdicts last used, for as long as the process lives.

    >>> from cm2_agent import Verdict
    >>> from cm2_agent.rewards import MemoryCache
    >>> cache = MemoryCache()
    >>> cache.put({"k": Verdict(item="a", value=True, weight=0)})
    >>> cache.get(["k", "other"])["k"].value
    True
    """

    def put(self, verdicts: Mapping[str, Verdict]) -> None:
        """The first verdict under a key stays: whoever asked twice gets one answer. Failures are left out."""
        super().put({key: verdict for key, verdict in verdicts.items() if is_cacheable(verdict)})


class NamespacedCache:
    """A cache seen through keys of its own namespace: what was judged outside it is judged anew, and what was judged
    within it is not."""

    def __init__(self, cache: VerdictCache, namespace: str) -> None:
        self._cache, self._namespace = cache, namespace

    def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        plain = {self._key(key): key for key in keys}
        return {plain[key]: verdict for key, verdict in self._cache.get(list(plain)).items()}

    def put(self, verdicts: Mapping[str, Verdict]) -> None:
        self._cache.put({self._key(key): verdict for key, verdict in verdicts.items()})

    def _key(self, key: str) -> str:
        return hashlib.sha256(f"{self._namespace}\0{key}".encode()).hexdigest()


def is_cacheable(verdict: Verdict) -> bool:
    """Whether a verdict may be cached: a judgement, or a NULL of the content's own doing."""
    return verdict.value is not None or verdict.cause == "content"


def attach_cache(judge: object, cache: VerdictCache) -> None:
    """Give the cache to a judge that can use one and has none, and to each judge of a panel or a cascade: what the gate
    asked is then known to the scorer, and nothing is paid for twice."""
    judges: Any = getattr(judge, "judges", (judge,))
    for one in judges:
        if getattr(one, "cache", ...) is None:
            one.cache = cache


__all__ = ["MemoryCache", "NamespacedCache", "VerdictCache", "attach_cache", "is_cacheable"]
