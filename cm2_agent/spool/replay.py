"""What dead processes left in a spool folder: read, handed over to be saved, and removed."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby

from cm2_agent.errors import TraceError
from cm2_agent.spool.files import ABOUT, OWN, RUN, SETTLED, SUFFIX, UNSCORED, lock_file, read_records
from cm2_agent.spool.record import decode_run
from cm2_agent.types.run import Run

__all__ = ["Leftover", "Replayed", "leftovers", "replay"]

UNREADABLE = ".unreadable"
"""What the name of a file ends in that was read as far as it could be."""
_BATCH_BYTES = 8 << 20
_turn = [threading.Lock()]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _turn.__setitem__(0, threading.Lock()))


@dataclass
class Replayed:
    """What a replay found: runs handed over, runs that could not be read, files whose end was torn off, numbers without
    a run, and the traces that had no score yet, as (key, trace id)."""

    runs: int = 0
    unreadable: int = 0
    torn: int = 0
    missing: int = 0
    unscored: list[tuple[str | None, str]] = field(default_factory=list)


@dataclass
class Leftover:
    """The runs of one dead process that are not settled: `records` by number."""

    paths: list[str]
    about: dict[str, str] = field(default_factory=dict)
    settled: int = 0
    records: dict[int, bytes] = field(default_factory=dict)
    unscored: list[tuple[str | None, str]] = field(default_factory=list)
    torn: int = 0
    unreadable: int = 0

    @property
    def missing(self) -> int:
        """How many runs were numbered and never written: the spool was full, or not there."""
        return max(0, max(self.records, default=self.settled) - self.settled - len(self.records))


def leftovers(folder: str, handle: Callable[[Leftover], bool]) -> None:
    """Call `handle` with what each dead process left, while its files are locked; where it answers true they are
    removed, or renamed where some of it could not be read."""
    with _turn[0]:  # locks of files do not keep threads apart
        _leftovers(folder, handle)


def _leftovers(folder: str, handle: Callable[[Leftover], bool]) -> None:
    try:
        folder = os.path.realpath(folder)
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except FileNotFoundError:
        return
    for _, group in groupby(names, key=lambda name: name.rpartition("-")[0]):
        paths = [path for name in group if (path := os.path.join(folder, name)) not in OWN]
        with ExitStack() as stack:
            files = [_locked(path, stack) for path in paths]
            if not files or None in files:
                continue
            found = Leftover(paths=paths)
            for data in files:
                _read(data or b"", found)
            if handle(found):
                for path in paths:
                    if found.torn or found.unreadable:
                        os.replace(path, path + UNREADABLE)
                    else:
                        os.unlink(path)


def _locked(path: str, stack: ExitStack) -> bytes | None:
    """The content of a file that no living process holds."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None  # nobody's spool; a pipe would be read for ever
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    stack.callback(os.close, fd)
    try:
        lock_file(fd)
    except OSError:
        return None
    status = os.fstat(fd)
    if not status.st_nlink or os.geteuid() not in (0, status.st_uid):
        return None  # another process has just replayed it; or it is somebody else's
    pieces = []
    while piece := os.read(fd, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _read(data: bytes, found: Leftover) -> None:
    for kind, number, payload in read_records(data):
        if kind == ABOUT:
            found.about = _about(payload)
            found.settled = max(found.settled, number)
        elif kind == SETTLED:
            found.settled = max(found.settled, number)
        elif kind == RUN:
            found.records[number] = payload
        elif kind == UNSCORED:
            found.unscored = _unscored(payload)  # the last note holds
        elif kind == 0:
            found.torn += 1
    found.records = {number: record for number, record in found.records.items() if number > found.settled}


def _about(payload: bytes) -> dict[str, str]:
    """Whose file it is; empty where that is no answer of `folder.about`, so that the file belongs to no store."""
    try:
        about = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    known = isinstance(about, dict) and all(isinstance(about.get(name), str) for name in ("store", "project"))
    return about if known else {}


def _unscored(payload: bytes) -> list[tuple[str | None, str]]:
    """Traces without a score; none where the record is of another form, since `cm2 score` finds them too."""
    try:
        found = [(key, trace_id) for key, trace_id in json.loads(payload)]
    except (ValueError, TypeError, RecursionError):
        return []
    return [(key, trace_id) for key, trace_id in found if isinstance(key, str | None) and isinstance(trace_id, str)]


def replay(
    folder: str,
    about: Mapping[str, str],
    save: Callable[[Sequence[tuple[str | None, Run]]], None],
) -> Replayed:
    """Hand the runs of dead processes with the same `about` to `save`, in batches of (key, run). What `save` raises
    stops the replay; the files then stay. Raises OSError."""
    replayed = Replayed()

    def handle(found: Leftover) -> bool:
        if found.about != about and (found.about or found.records):
            return False
        batch: list[tuple[str | None, Run]] = []
        size = 0
        for number in sorted(found.records):
            record = found.records[number]
            try:
                batch.append(split_key(record))
            except TraceError:
                found.unreadable += 1
                continue
            size += len(record)
            if size > _BATCH_BYTES:
                save(batch)
                batch, size = [], 0
        if batch:
            save(batch)
        replayed.runs += len(found.records) - found.unreadable
        replayed.unreadable += found.unreadable
        replayed.torn += found.torn
        replayed.missing += found.missing
        replayed.unscored += found.unscored
        return True

    leftovers(folder, handle)
    return replayed


def join_key(key: str | None, record: bytes) -> bytes:
    """A run's record behind the key of the graph that it came from."""
    text = b"\xff" if key is None else key.encode("utf-8", "surrogatepass")
    return len(text).to_bytes(4, "little") + text + record


def split_key(record: bytes) -> tuple[str | None, Run]:
    """The key and the run of `join_key`. Raises TraceError."""
    size = int.from_bytes(record[:4], "little")
    text = record[4 : 4 + size]
    try:
        key = None if text == b"\xff" else text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise TraceError(f"not a spooled run: {error}; expected a record of this version") from error
    return key, decode_run(record[4 + size :])
