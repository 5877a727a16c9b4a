"""Database calls inside the event loop of the scoring thread, which is ours alone and may block."""

from __future__ import annotations

from asyncio import events
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["blocking"]


@contextmanager
def blocking() -> Iterator[None]:
    """Within it the thread has no running loop: servers that forbid blocking calls wherever one runs (`langgraph dev`)
    mean loops that serve requests."""
    loop = events._get_running_loop()
    events._set_running_loop(None)
    try:
        yield
    finally:
        events._set_running_loop(loop)
