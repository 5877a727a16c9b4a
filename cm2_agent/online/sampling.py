"""Whether a trace belongs to a share of the traffic: drawn by its id, so that every process draws alike."""

from __future__ import annotations

from collections.abc import Callable

from cm2_agent.types.json_values import content_hash
from cm2_agent.types.run import Run

__all__ = ["is_drawn", "sampled"]


def is_drawn(trace_id: str, share: float) -> bool:
    """Whether the trace is in the share (0…1). What is in a share is in every larger one.

    >>> is_drawn("t1", 1.0), is_drawn("t1", 0.0)
    (True, False)
    """
    return int(content_hash(trace_id)[:8], 16) / 16**8 < share


def sampled(on_run: Callable[[Run], None], share: float | None) -> Callable[[Run], None]:
    """`on_run` for the runs of a share (0…1) of the threads, None for all of them. A branch goes with its thread; a run
    without a thread is drawn by itself."""
    if share is None:
        return on_run

    def take(run: Run) -> None:
        if is_drawn(run.thread or run.trace_id, share):
            on_run(run)

    return take
