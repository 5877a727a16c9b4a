"""Counts of what went wrong, from this process into the store."""

from __future__ import annotations

from typing import Any

from cm2_agent.incidents import Incidents
from cm2_agent.online.forks import DATABASE
from cm2_agent.types.protocols import Store

__all__ = ["store_incidents"]


def store_incidents(store: Store | None, incidents: Incidents) -> int:
    """Store what was counted so far, if the store counts incidents; answers how many kinds it took. Never raises: what
    is left is stored later."""
    count: Any = getattr(store, "count_incident", None)
    if not callable(count) or not incidents.pending:
        return 0
    pending = incidents.drain()
    taken = 0
    for kind in list(pending):
        try:
            number, detail = pending[kind]
            with DATABASE:
                count(kind, detail, number)
        except Exception:  # the store is away
            incidents.restore(pending)
            break
        del pending[kind]
        taken += 1
    return taken
