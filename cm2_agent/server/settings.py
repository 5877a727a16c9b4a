"""What a collector is told when it starts: its limits, and how long it waits for spans."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The limits of a collector.

    Args:
        quiet: Seconds without a new span after which a trace whose root has ended is complete.
        rootless: Seconds without a new span after which one whose root never came is built without it.
        late: Seconds for which the spans of a stored run are kept, so that one that comes late joins them.
        most_body: Bytes of a request as it is sent.
        most_unpacked: Bytes of it when it is decompressed.
        most_waiting: Bytes of requests that wait to be stored; beyond, 429.
        most_open: Bytes of spans of incomplete traces held in memory; beyond, they are read from the store again.
        spans_per_second: How many spans a second each project may send on average; beyond, 429. None: no limit.
        drain: Seconds that the end waits for requests and runs under way.
    """

    quiet: float = 5.0
    rootless: float = 300.0
    late: float = 3600.0
    most_body: int = 16 << 20
    most_unpacked: int = 64 << 20
    most_waiting: int = 128 << 20
    most_open: int = 256 << 20
    spans_per_second: float | None = None
    drain: float = 30.0
