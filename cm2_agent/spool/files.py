"""The spool files of one process: what it has answered and not yet stored, in files that outlive it.

A run is appended as it ends, without fsync: the page cache outlives the process, whatever ends it (not the machine). A
file is locked by its process for as long as that lives, so a file that can be locked is what a dead one left. Where the
system has no such locks (Windows) there is no spool."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "ABOUT",
    "LOCKS",
    "OWN",
    "RUN",
    "SETTLED",
    "SUFFIX",
    "UNSCORED",
    "Place",
    "Spool",
    "SpoolFull",
    "lock_file",
    "pack_record",
    "read_records",
]

SUFFIX = ".spool"
ABOUT, RUN, SETTLED, UNSCORED = 1, 2, 3, 4
"""The kinds of records: whose file it is, a run, the number up to which runs are settled, traces without a score."""
_HEAD = struct.Struct("<IIBQ")
"""Bytes of the payload, checksum, kind, number."""
LOCKS = fcntl is not None
"""Whether files can be locked here; without it there is no spool."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
for _name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):
    _FLAGS |= getattr(os, _name, 0)
_FILE_BYTES = 16 << 20
OWN: set[str] = set()
"""The files of this process, by their real paths. To open and close one of them would give up its lock."""


class SpoolFull(OSError):
    """The spool holds as much as it may."""


class Place(NamedTuple):
    """Where a run's record lies."""

    file: _File
    start: int
    size: int


@dataclass(eq=False)
class _File:
    path: str
    fd: int
    size: int = 0
    first: int = 0
    last: int = 0
    """The numbers of the first and the last run in it."""
    removed: bool = False
    """Somebody has removed it: what is written to it goes with the process."""


class Spool:
    """The spool files of one process in a folder. The caller holds one lock around every method; nothing but `prepare`
    and `close` looks at the folder.

    `about` answers whose runs these are (`store`, `project`), which is compared when the files are read again. At most
    `limit` bytes are held. `parents`: whether folders above it are made too. `folder` is its real path once it is
    prepared: the same folder by another name is the same folder."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        about: Callable[[], Mapping[str, str]],
        *,
        limit: int = 1 << 30,
        parents: bool = True,
    ) -> None:
        self.folder = os.fspath(folder)
        self.about: dict[str, str] = {}
        self._whose = about
        self.limit = limit
        self._parents = parents
        self.ready = False
        self.settled = 0
        self._forget()

    def _forget(self) -> None:
        self._files: deque[_File] = deque()
        self._name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._made = 0
        self._noted = False

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(file.size for file in self._files)

    def prepare(self) -> None:
        """Make the folder, for its owner alone. Raises OSError."""
        self.folder = os.path.realpath(self.folder)
        Path(self.folder).mkdir(mode=0o700, parents=self._parents, exist_ok=True)
        self.about = dict(self._whose())
        self.ready = True

    def append(self, number: int, record: bytes, kind: int = RUN) -> Place:
        """Raises OSError: the disk is full, or the folder is gone."""
        file = self._files[-1] if self._files else None
        size = _HEAD.size + len(record)
        if self.size + size > self.limit:
            raise SpoolFull(f"the spool {self.folder} holds {self.limit} bytes, as much as it may")
        if file is None or file.size > _FILE_BYTES or file.removed:
            file = self._open()
        place = Place(file, file.size + _HEAD.size, len(record))
        self._write(file, kind, number, record)
        file.first = file.first or number
        file.last = max(file.last, number if kind == RUN else number + 1)  # what is to be scored stays at the end
        return place

    def read(self, place: Place) -> bytes:
        """A record again. Raises OSError."""
        return os.pread(place.file.fd, place.size, place.start)

    def look(self) -> None:
        """Notice files that somebody has removed: what comes from now on is written to a new one."""
        for file in self._files:
            file.removed = file.removed or not os.fstat(file.fd).st_nlink

    @property
    def removed(self) -> set[int]:
        """The numbers of runs that are not settled and were in files that somebody has removed."""
        files = [file for file in self._files if file.removed]
        return {number for file in files for number in range(max(file.first, self.settled + 1), file.last + 1)}

    def settle(self, number: int, unscored: bytes = b"") -> None:
        """All runs up to this number are stored (or refused): they are not read again, and where nothing else is left
        the file is emptied, so that no dialogue lies there longer than it must. `unscored` are the traces that have no
        score yet, for whoever reads what a killed process left; it takes the place of what was noted before. Raises
        OSError."""
        self.settled = number
        while len(self._files) > 1 and self._files[0].last <= number:
            self._remove(self._files.popleft())
        if not self._files:
            return
        file = self._files[-1]
        if file.last <= number:
            os.ftruncate(file.fd, 0)
            file.size = 0
            file.first = 0
            self._write(file, ABOUT, number, self._about())
            self._noted = False
        else:
            self._write(file, SETTLED, number, b"")
        if unscored or self._noted:
            self._write(file, UNSCORED, number, unscored or b"[]")
            self._noted = bool(unscored)

    def close(self) -> None:
        """Remove the files, if all of their runs are settled, and the folder, if nothing else is in it."""
        if any(file.last > self.settled for file in self._files):
            return
        while self._files:
            self._remove(self._files.popleft())
        if self.ready:
            with suppress(OSError):
                os.rmdir(self.folder)
            self.ready = False

    def leave(self) -> None:
        """In a forked child: the files are the parent's."""
        for file in self._files:
            OWN.discard(file.path)
            os.close(file.fd)
        self._forget()
        self.settled = 0

    def _open(self) -> _File:
        self._made += 1
        path = f"{self.folder}/{self._name}-{self._made:06d}{SUFFIX}"
        OWN.add(path)
        try:
            file = _File(path, self._create(path))
        except OSError:
            OWN.discard(path)
            raise
        try:
            lock_file(file.fd)
            self._write(file, ABOUT, self.settled, self._about())
        except OSError:
            self._remove(file)
            raise
        self._files.append(file)
        return file

    def _create(self, path: str) -> int:
        try:
            return os.open(path, _FLAGS, 0o600)
        except FileNotFoundError:  # another process that ended has removed the folder, which was empty
            if _in_event_loop():  # an event loop cannot make it; the saver does
                self.ready = False
                raise
            self.prepare()
            return os.open(path, _FLAGS, 0o600)

    def _about(self) -> bytes:
        return json.dumps(self.about).encode()

    @staticmethod
    def _write(file: _File, kind: int, number: int, payload: bytes) -> None:
        data = pack_record(kind, number, payload)
        written = 0
        try:
            while written < len(data):
                written += os.write(file.fd, data[written:] if written else data)
        except OSError:
            os.ftruncate(file.fd, file.size)  # half a record would hide what comes after it
            raise
        file.size += len(data)

    @staticmethod
    def _remove(file: _File) -> None:
        with suppress(FileNotFoundError):
            os.unlink(file.path)
        os.close(file.fd)
        OWN.discard(file.path)


def lock_file(fd: int) -> None:
    """Raises OSError where another process has locked it."""
    assert fcntl is not None
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def pack_record(kind: int, number: int, payload: bytes) -> bytes:
    """One record: length, checksum, kind, number, payload."""
    check = zlib.crc32(payload, zlib.crc32(_HEAD.pack(len(payload), 0, kind, number)))
    return _HEAD.pack(len(payload), check, kind, number) + payload


def read_records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, number, payload) of each record, up to the first that is torn; a last (0, offset, b"") says that there was
    one. A run's record that is damaged while the next one is whole has an empty payload, which is no run."""
    start = 0
    while start < len(data):
        payload = b""
        if start + _HEAD.size <= len(data):
            size, _, kind, number = _HEAD.unpack_from(data, start)
            payload = data[start + _HEAD.size : start + _HEAD.size + size]
            whole = _is_whole(data, start)
            if whole or (kind == RUN and _is_whole(data, start + _HEAD.size + size)):
                yield kind, number, payload if whole else b""
                start += _HEAD.size + size
                continue
        yield 0, start, b""
        return


def _is_whole(data: bytes, start: int) -> bool:
    """Whether a record stands there, as it was written."""
    if start + _HEAD.size > len(data):
        return False
    size, check, kind, number = _HEAD.unpack_from(data, start)
    expected: bytes = check.to_bytes(4, "little")
    payload = data[start + _HEAD.size : start + _HEAD.size + size]
    return len(payload) == size and pack_record(kind, number, payload)[4:8] == expected
