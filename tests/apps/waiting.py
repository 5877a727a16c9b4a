"""Waiting for a server, and a port for it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def until(
    done: Callable[[], bool], seconds: float, otherwise: str, log: Path, process: subprocess.Popen[bytes]
) -> None:
    """Wait until it is so. Raises AssertionError with the server's last words where it takes too long, or the server is
    gone."""
    deadline = time.monotonic() + seconds
    while not done():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{otherwise}; the server's last words:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)
