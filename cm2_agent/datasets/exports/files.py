"""Files that are there whole or not at all: written beside their place, and moved there once complete."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from cm2_agent.datasets.exports.chat_messages import Entry
from cm2_agent.errors import StoreError

STDOUT = Path("-")


def write_lines(path: Path, records: Iterable[Entry]) -> int:
    """Write a record a line, to stdout for `-`, and return how many there were. Raises StoreError."""
    if path == STDOUT:
        return _write(sys.stdout, records)
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as lines:
        return _write(lines, records)


def _write(lines: TextIO, records: Iterable[Entry]) -> int:
    count = 0
    for record in records:
        lines.write(json.dumps(record, allow_nan=False) + "\n")
        count += 1
    return count


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write to; what was written there becomes the file on leaving, and is removed where that fails. Raises
    StoreError where it cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; name a file in a folder that can be written"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


__all__ = ["STDOUT", "whole_file", "write_lines"]
