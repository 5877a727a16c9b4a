"""Which rollouts of a named run are this process's: those that it claims in the store, as others may run beside it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from cm2_agent.types.task import Task

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore
    from cm2_agent.store.claims import Claim

_logger = logging.getLogger("cm2_agent")
Job = tuple[Task, int]
POLL = 0.5
"""Seconds until it is looked again whether other processes have finished what they do, or have ended without."""
_WINDOW = 64
"""Rollouts that are looked up in the store at a time, at least."""


class Jobs(Protocol):
    """The rollouts of a run, as this process comes to them."""

    @property
    def left(self) -> int:
        """Rollouts that `take` has not given and nobody has done, as far as it is known."""
        ...

    @property
    def waits(self) -> bool:
        """Whether nothing is left but what other processes do."""
        ...

    def take(self, most: int) -> list[Job]:
        """The next rollouts of this process, `most` at most; fewer where others do the rest. Raises StoreError."""
        ...

    def claim(self, thread: str) -> Claim | None:
        """The claim on a rollout, to be handed in as it is saved."""
        ...

    def is_taken_over(self, thread: str) -> bool:
        """Whether another process had begun the rollout."""
        ...

    def is_wanted(self, thread: str) -> bool:
        """Whether a rollout that is found in the store is a result of this process too; a claim on it is given
        back."""
        ...

    def done(self, thread: str) -> None:
        """The rollout is stored, with its claim."""
        ...

    def lost(self, job: Job) -> None:
        """Another process has taken the rollout over."""
        ...

    def close(self) -> None:
        """Give back the claims on what was not done."""
        ...


class OwnJobs:
    """Those of a run that nobody shares, since it has no name or no store."""

    waits = False

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._new = deque(jobs)

    @property
    def left(self) -> int:
        return len(self._new)

    def take(self, most: int) -> list[Job]:
        return [self._new.popleft() for _ in range(min(most, len(self._new)))]

    def claim(self, thread: str) -> None:
        return None

    def is_taken_over(self, thread: str) -> bool:
        return False

    def is_wanted(self, thread: str) -> bool:
        return True

    def done(self, thread: str) -> None:
        pass

    def lost(self, job: Job) -> None:
        self._new.append(job)

    def close(self) -> None:
        pass


class SharedJobs:
    """Those of a run that other processes may work on too: each rollout is claimed before it begins, and what others do
    is waited for. Their results are read from the store, or left out where `left_out` is given, which is called with
    some of them and raises where they are of another run."""

    def __init__(
        self,
        store: SQLStore,
        jobs: Iterable[Job],
        thread_of: Callable[[Job], str],
        *,
        left_out: Callable[[Job], object] | None = None,
    ) -> None:
        from cm2_agent.store.claims import Claims

        self._store, self._thread_of, self._left_out = store, thread_of, left_out
        self._claims = Claims(store)
        self._new = deque(jobs)
        self._others: deque[Job] = deque()
        self._look = 0.0
        self._taken_over: set[str] = set()
        self._said = False

    @property
    def left(self) -> int:
        return len(self._new) + len(self._others)

    @property
    def waits(self) -> bool:
        return not self._new and bool(self._others)

    def take(self, most: int) -> list[Job]:
        found: list[Job] = []
        while self._new and len(found) < most:
            found += self._next(self._new, max(_WINDOW, most), most - len(found))
        if self._others and len(found) < most and time.monotonic() >= self._look:
            found += self._next(self._others, len(self._others), most - len(found))
            self._look = time.monotonic() + POLL
        if not found and self.waits and not self._said:
            self._said = True
            _logger.info("%d dialogues are held by other processes; waiting for them", len(self._others))
        return found

    def claim(self, thread: str) -> Claim:
        return self._claims.claim(thread)

    def is_taken_over(self, thread: str) -> bool:
        return thread in self._taken_over

    def is_wanted(self, thread: str) -> bool:
        if self._claims.holds(thread):
            self._claims.release([thread])
        return self._left_out is None

    def done(self, thread: str) -> None:
        self._claims.forget(thread)

    def lost(self, job: Job) -> None:
        self._claims.forget(self._thread_of(job))
        self._others.append(job)

    def close(self) -> None:
        self._claims.close()

    def _next(self, queue: deque[Job], number: int, most: int) -> list[Job]:
        """Of the first so many jobs of a queue, the first that are this process's; what others do waits."""
        looked = {self._thread_of(job): job for job in islice(queue, number)}
        for _ in range(len(looked)):
            queue.popleft()
        stored = self._store.stored(looked)
        busy = self._claims.busy([thread for thread in looked if thread not in stored])
        if self._left_out is not None and stored:
            self._left_out(next(job for thread, job in looked.items() if thread in stored))
        others = busy if self._left_out is None else busy | stored
        wanted = [thread for thread in looked if thread not in others]
        chosen, rest = wanted[:most], wanted[most:]
        taken = self._claims.take([thread for thread in chosen if thread not in stored])
        self._taken_over.update(thread for thread, before in taken.items() if before)
        mine = [thread for thread in chosen if thread in stored or thread in taken]
        queue.extendleft(looked[thread] for thread in reversed(rest))
        self._others.extend(job for thread, job in looked.items() if thread in busy or thread in {*chosen} - {*mine})
        return [looked[thread] for thread in mine]


__all__ = ["POLL", "Job", "Jobs", "OwnJobs", "SharedJobs"]
