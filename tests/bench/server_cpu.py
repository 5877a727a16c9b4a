"""The CPU that a server has used, with the processes that it has started."""

from __future__ import annotations

import psutil


def cpu_of(process: psutil.Process) -> float:
    """Seconds in user and system mode of the process and those below it."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
