"""The runs that a store refused: a file in the spool's folder, one JSON object a line, `reason` and `run`."""

from __future__ import annotations

import json
import os

from cm2_agent.types.run import Run

__all__ = ["add_refused", "count_refused"]

_NAME = "refused.jsonl"
_MAX_BYTES = 64 << 20


def add_refused(folder: str, run: Run, error: BaseException) -> None:
    """Append a run and why it was refused, of one that is nested too deeply its id alone; nothing where the file is
    full. Raises OSError."""
    reason = f"{type(error).__name__}: {error}"
    try:
        line = json.dumps({"reason": reason, "run": run.to_json()}, default=repr) + "\n"
    except (ValueError, TypeError, RecursionError):  # a circle, a key that is no text, too deep
        line = json.dumps({"reason": reason, "run": {"id": run.id}}) + "\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(os.path.join(folder, _NAME), flags, 0o600)
    try:
        if os.fstat(fd).st_size + len(line) <= _MAX_BYTES:
            os.write(fd, line.encode())
    finally:
        os.close(fd)


def count_refused(folder: str) -> int:
    """How many runs the file of a folder holds; 0 without one. Raises OSError."""
    try:
        with open(os.path.join(folder, _NAME), "rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return 0
