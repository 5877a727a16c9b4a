"""KnownVerdicts: what a judge has answered before, looked up in its cache under the model that answered."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.score import Verdict

from .cache import VerdictCache
from .judge_pass import is_asked_anew
from .prompt import Window


class KnownVerdicts:
    """One judge's entries in a cache of verdicts.

    `identity` names the model as asked for, its settings and its prompt. `served` is the returned name under which
    verdicts are looked up: the one that answered last, else the newest that the cache knows for this identity. Another
    returned name is another judge, so what the old one answered is not found under it."""

    def __init__(self, cache: VerdictCache | None, identity: str) -> None:
        self.cache = cache
        self.served: str | None = None
        self._identity = identity
        self._names: list[str] | None = None

    def get(self, window: Window, lines: Sequence[str], vote: int) -> list[Verdict | None]:
        """The verdict on each item line, None where it must be asked."""
        if self.cache is None or is_asked_anew():
            return [None] * len(lines)
        served = self._last_served(self.cache)
        if served is None:
            return [None] * len(lines)
        keys = [self._key(window, line, vote, served) for line in lines]
        found = self.cache.get(keys)
        return [found.get(key) for key in keys]

    def put(
        self, window: Window, items: Sequence[tuple[Item, str]], verdicts: Mapping[str, Verdict], vote: int
    ) -> None:
        """Cache the items' verdicts, but for failures."""
        if self.cache is None or is_asked_anew():
            return
        made = {}
        for item, line in items:
            verdict = verdicts.get(item.id)
            if verdict is not None and verdict.evidence:  # a failure quotes no judge: it is asked again
                made[self._key(window, line, vote, str(verdict.evidence[0]["judge"]))] = verdict
        if made:
            self.cache.put(made)

    def answered_by(self, served: str) -> None:
        """Note the name that the model returned, also for the next process."""
        if served == self.served and self._names is not None:
            return
        self.served = served
        if self.cache is None:
            return
        if self._names is None:
            self._names = self._known_names(self.cache)
        if served not in self._names:
            record = Verdict(item="returned model", value=None, weight=0, cause="content", explanation=served)
            self.cache.put({self._name_key(len(self._names)): record})
            self._names.append(served)

    def _last_served(self, cache: VerdictCache) -> str | None:
        if self.served is None:
            if self._names is None:
                self._names = self._known_names(cache)
            if self._names:
                self.served = self._names[-1]
        return self.served

    def _known_names(self, cache: VerdictCache) -> list[str]:
        """The names that this model has returned, oldest first, cached under numbers: entries there are never
        overwritten."""
        names: list[str] = []
        while (found := cache.get([self._name_key(len(names))])) and (name := next(iter(found.values())).explanation):
            names.append(name)
        return names

    def _name_key(self, number: int) -> str:
        return content_hash(["returned model", self._identity, number])

    def _key(self, window: Window, line: str, vote: int, served: str) -> str:
        text = (
            f"{self._identity}\0{served}\0{window.digest}\0{window.turn}:{window.first}-{window.last}\0{vote}\0{line}"
        )
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


__all__ = ["KnownVerdicts"]
