"""Where saved runs went: the trace that each is part of, as the store placed it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cm2_agent.types.run import Run

__all__ = ["traces_of"]


def traces_of(store: Any, runs: Iterable[Run]) -> dict[str, str]:
    """The trace of each saved run by the run's id. A store that places no runs has them where they say."""
    own = {run.id: run.trace_id for run in runs}
    placed = getattr(store, "trace_ids", None)
    return {**own, **placed(list(own))} if callable(placed) else own
