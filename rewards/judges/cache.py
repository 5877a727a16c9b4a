"""Verdicts that are known already: what a cache of them must do, and one in memory; apart from the judge, which makes
the keys, and from the store, whose `SQLStore.verdict_cache()` keeps them for good.

A key names everything that a verdict depends on (item, returned model, settings, prompt version, evidence window,
vote). A NULL that is no judgement (time-out, malformed reply) is never kept: it is asked again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

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


class MemoryCache:
    """The `size` verdicts last used, for as long as the process lives.

    >>> cache = MemoryCache()
    >>> cache.put({"k": Verdict(item="a", value=True, weight=0)})
    >>> cache.get(["k", "other"])["k"].value
    True
    """

    def __init__(self, size: int = 65_536) -> None:
        if size < 1:
            raise ValueError(f"a cache of {size} verdicts was asked for; expected 1 or more")
        self._size = size
        self._known: OrderedDict[str, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
            for key in found:
                self._known.move_to_end(key)
            return found

    def put(self, verdicts: Mapping[str, Verdict]) -> None:
        """The first verdict under a key stays: whoever asked twice gets one answer."""
        with self._lock:
            for key, verdict in verdicts.items():
                if is_cacheable(verdict):
                    self._known.setdefault(key, verdict)
                    self._known.move_to_end(key)
            while len(self._known) > self._size:
                self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


class NamespacedCache:
    """A cache seen through other keys: what was judged without the salt is judged anew, and what was judged with it is
    not."""

    def __init__(self, cache: VerdictCache, salt: str) -> None:
        self._cache, self._salt = cache, salt

    def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        plain = {self._key(key): key for key in keys}
        return {plain[key]: verdict for key, verdict in self._cache.get(list(plain)).items()}

    def put(self, verdicts: Mapping[str, Verdict]) -> None:
        self._cache.put({self._key(key): verdict for key, verdict in verdicts.items()})

    def _key(self, key: str) -> str:
        return hashlib.sha256(f"{self._salt}\0{key}".encode()).hexdigest()


def is_cacheable(verdict: Verdict) -> bool:
    """Whether a verdict may be kept: a judgement, or a NULL of the content's own doing."""
    return verdict.value is not None or verdict.cause == "content"


def attach_cache(judge: object, cache: VerdictCache) -> None:
    """Give the cache to a judge that can keep one and has none, and to each judge of a panel or a cascade: what the
    gate asked is known to the score then, and nothing is paid for twice."""
    keepers: Any = getattr(judge, "judges", (judge,))
    for keeper in keepers:
        if getattr(keeper, "cache", ...) is None:
            keeper.cache = cache


__all__ = ["MemoryCache", "NamespacedCache", "VerdictCache", "attach_cache", "is_cacheable"]
