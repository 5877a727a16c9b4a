"""Clusters: what the intervals of a figure resample."""

from __future__ import annotations


def cluster_of(trace_id: str, task_id: str | None) -> str:
    """The trace's task, since rollouts of a task resemble each other, else the trace itself.

    >>> cluster_of("t1", "order-7"), cluster_of("t1", None)
    ('task order-7', 'trace t1')
    """
    return f"trace {trace_id}" if task_id is None else f"task {task_id}"


__all__ = ["cluster_of"]
