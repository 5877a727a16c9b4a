"""The collector: intake, assembly and the store of runs put together, from the start to the drain at the end."""

from __future__ import annotations

import threading
import time
from os import PathLike
from typing import Any

from cm2_agent.incidents import Incidents
from cm2_agent.online.incident_counts import store_incidents
from cm2_agent.server.access import Access
from cm2_agent.server.assembly import Assembly
from cm2_agent.server.intake import Intake
from cm2_agent.server.limits import RateLimit
from cm2_agent.server.run_store import RunStore
from cm2_agent.server.settings import Settings
from cm2_agent.store.received import ReceivedSpans
from cm2_agent.store.sql_store import SQLStore
from cm2_agent.types.checklist import Checklist

__all__ = ["Collector"]


class Collector:
    """Receives spans into a store and builds and scores their runs. `close` drains it."""

    def __init__(
        self,
        store: SQLStore,
        *,
        checklist: Checklist | str | PathLike[str] | None = None,
        settings: Settings | None = None,
        open_to_loopback: bool = True,
        policy: str | None = None,
    ) -> None:
        self.store = store
        self.settings = settings or Settings()
        self.incidents = Incidents()
        self.access = Access(store, self.incidents, open_to_loopback=open_to_loopback)
        self.rates = RateLimit(self.settings.spans_per_second)
        self.received = ReceivedSpans(store)
        self.runs = RunStore(
            store,
            self.received,
            self.incidents,
            checklist=checklist,
            policy=policy,
            keep=self.settings.late > 0,
        )
        self.assembly = Assembly(self.received, self.runs.build, self.incidents, self.settings)
        self.intake = Intake(self.received, self.assembly.add, self.incidents, most_waiting=self.settings.most_waiting)
        self.draining = False
        self._closed = threading.Lock()

    def health(self) -> dict[str, Any]:
        """What `/healthz` says."""
        return {
            "status": "draining" if self.draining else "ok",
            "spans": self.intake.spans,
            "open_traces": self.assembly.open,
            "runs": self.runs.saved,
            "recovered_traces": self.assembly.recovered,
        }

    def flush(self, timeout: float) -> bool:
        """Build and score what has a root now; False where that took longer than so many seconds."""
        deadline = time.monotonic() + timeout
        done = self.assembly.flush(timeout)
        return self.runs.flush(max(0.0, deadline - time.monotonic())) and done

    def close(self) -> bool:
        """Take nothing more, store what came, build what is complete, score it. False where that took longer than the
        drain may; what is not built is built at the next start."""
        self.draining = True
        with self._closed:
            deadline = time.monotonic() + self.settings.drain

            def left() -> float:
                return max(0.0, deadline - time.monotonic())

            done = self.intake.close(left())
            done = self.assembly.close(left()) and done
            done = self.runs.flush(left()) and done
            store_incidents(self.store, self.incidents)
        return done
