"""The live path of one graph's runs: from the user's thread to the saver, and from there to scorer and sinks.

What goes wrong here never comes back to the caller; it is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from cm2_agent.online.middleware import Middleware
from cm2_agent.online.save_errors import meaning_of
from cm2_agent.online.saver import Saver
from cm2_agent.online.scoring import ScoringPath
from cm2_agent.types.protocols import Store
from cm2_agent.types.run import Run

__all__ = ["STALLED", "Live"]

STALLED = 60.0
"""Seconds without any progress after which `flush` gives up, however long it may wait."""


class Live:
    """Takes runs from any thread (`submit`): the saver saves each, then the scoring path scores its trace.

    `key` names what the runs are scored by, so that runs which an earlier process left are scored alike. `on_open` is
    called with the store when it is open, in a forked child again, before anything is scored; what it raises is in
    `failure`, and the runs are then saved without a score."""

    def __init__(
        self,
        saver: Saver,
        scoring: ScoringPath,
        middleware: Middleware,
        *,
        key: str | None = None,
        on_open: Callable[[Store], None] | None = None,
    ) -> None:
        self.saver, self.scoring, self.middleware = saver, scoring, middleware
        self.key = key
        self.failure: Exception | None = None
        self._on_open = on_open

    def start(self, timeout: float | None) -> Exception | None:
        """Open the store, and wait for that up to `timeout` seconds; answers why it is not open."""
        return self.saver.add(self, timeout)

    def submit(self, run: Run) -> None:
        """Hand over a finished run. Returns at once; never raises."""
        self.saver.submit(self, run)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was submitted is saved and scored. False where it is not: it took longer than `timeout`
        seconds, nothing moved for a minute, or a run was refused or dropped since the last flush."""
        deadline = None if timeout is None else time.monotonic() + timeout
        saved = self.saver.flush(deadline, STALLED)
        return self.scoring.flush(deadline, STALLED) and saved

    def opened(self, store: Store) -> None:
        """The store is open (called by the saver). Raises StoreError where it is away again."""
        self.failure = None
        if self._on_open is not None:
            try:
                self._on_open(store)
            except Exception as error:
                if meaning_of(error) == "away":
                    raise
                self.failure = error
                self.saver.incidents.add("a graph's runs cannot be scored", error)
        self.middleware.store = store
        if unscored := self.saver.unscored_of(self.key):
            self.saved(dict.fromkeys(unscored, ()))

    def saved(self, runs: Mapping[str, Sequence[Run]]) -> None:
        """Runs were saved (called by the saver): by trace those that are known, in their order."""
        if self.failure is None and (self.middleware.scorer is not None or self.middleware.sinks):
            for trace_id, own in runs.items():
                for run in own:
                    self.scoring.traces.add(trace_id, run)
            self.scoring.submit(self, runs)
