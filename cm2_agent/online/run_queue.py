"""The queue between the threads that run graphs and the saver: bounded in count and in bytes, and backed by the
spool."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

from cm2_agent.errors import TraceError
from cm2_agent.incidents import Incidents
from cm2_agent.spool.files import UNSCORED, Place, Spool
from cm2_agent.spool.record import encode_run
from cm2_agent.spool.replay import join_key, split_key
from cm2_agent.types.protocols import Store
from cm2_agent.types.run import Run

__all__ = ["Entry", "RunQueue", "Watched"]

BATCH, _BATCH_BYTES = 256, 8 << 20
"""How many runs one transaction saves at the most, and how many bytes of them."""
_NOTED = 1000
"""How many traces without a score are noted with each transaction."""


class Watched(Protocol):
    """Whose runs are saved: it hears when the store is open, and which traces have new runs."""

    key: str | None

    def opened(self, store: Store) -> None: ...

    def saved(self, runs: Mapping[str, Sequence[Run]]) -> None: ...


class Entry(NamedTuple):
    """A run that waits to be saved."""

    number: int
    watched: Watched | None
    """None: no run, but the wish that the saver looks after what is new."""
    run: Run | None
    """None: in the spool alone."""
    place: Place | None
    size: int


class RunQueue:
    """`lock` is held around every change, and across forks. Runs beyond `size` or `held` bytes wait in the spool alone;
    without a spool they are dropped, counted, and added to `dropped`."""

    def __init__(self, incidents: Incidents, spool: Spool | None, *, size: int, held: int) -> None:
        self.incidents, self.spool = incidents, spool
        self._size, self._limit = size, held
        self._forget()

    def _forget(self) -> None:
        self.lock = threading.Lock()
        self.waiting = self.dropped = self.submitted = 0
        self._number = self._held = 0
        self._bare: set[int] = set()
        """The numbers of the runs that wait in memory alone."""
        self._entries: SimpleQueue[Entry] = SimpleQueue()

    def in_child(self) -> None:
        """After a fork, in the child: what waits is the parent's, and so is the spool."""
        if self.spool is not None:
            self.spool.leave()
        self._forget()

    # For callers

    def put(self, watched: Watched, run: Run) -> None:
        """Take a finished run: into the spool at once. Never raises."""
        try:
            record = join_key(watched.key, encode_run(run))
        except Exception:  # it is not JSON: the store will say what is wrong with it
            record = b""
        failed: OSError | None = None
        with self.lock:
            self._number += 1
            number, place, size = self._number, None, len(record)
            if record and self.spool is not None and self.spool.ready:
                try:
                    place = self.spool.append(number, record)
                except OSError as error:
                    failed = error
            held = self._held + size <= self._limit and self.waiting < self._size
            if held:
                self._held += size
            if held or place is not None:
                self.waiting += 1
                self.submitted += 1
                if place is None:
                    self._bare.add(number)
                self._entries.put(Entry(number, watched, run if held else None, place, size))
            else:
                self.dropped += 1
        if failed is not None:
            self.incidents.add("a run could not be written to the spool and waits in memory", failed)
        if not held and place is None:
            self.incidents.add(f"dropped: more than {self._size} runs or {self._limit >> 20} MB were waiting")

    def request(self) -> int:
        """Wish that the saver looks after what is new. The caller holds the lock; answers how many entries were put."""
        self.submitted += 1
        self._entries.put(Entry(self._number, None, None, None, 0))
        return self.submitted

    # For the saver

    def get(self, timeout: float) -> Entry | None:
        """The next entry, None where none comes in time."""
        try:
            return self._entries.get(timeout=timeout)
        except Empty:
            return None

    def empty(self) -> bool:
        return self._entries.empty()

    def gather(self, batch: list[Entry]) -> None:
        """Add what is there, up to the size of a batch."""
        size = sum(entry.size for entry in batch)
        while len(batch) < BATCH and size < _BATCH_BYTES:
            try:
                batch.append(self._entries.get_nowait())
            except Empty:
                return
            size += batch[-1].size

    def prepare(self) -> None:
        """Make the spool's folder, which a caller inside an event loop could not; see that its files are still
        there."""
        if self.spool is None:
            return
        try:
            with self.lock:
                if self.spool.ready:
                    self.spool.look()
                else:
                    self.spool.prepare()
        except OSError as error:
            self.incidents.add("there is no spool: its folder cannot be made, and runs wait in memory alone", error)

    def read(self, entry: Entry) -> Run | None:
        """The run of an entry; None where it cannot be read from the spool again."""
        if entry.run is not None:
            if entry.place is None and self.spool is not None and self.spool.ready:
                self._write_late(self.spool, entry, entry.run)
            return entry.run
        assert entry.place is not None
        assert self.spool is not None
        try:
            with self.lock:
                record = self.spool.read(entry.place)
            return split_key(record)[1]
        except (OSError, TraceError) as error:
            self.incidents.add("a run could not be read from the spool again", error)
            self.dropped += 1
            return None

    def _write_late(self, spool: Spool, entry: Entry, run: Run) -> None:
        """Write a run that ended before the spool was there."""
        try:
            record = join_key(None if entry.watched is None else entry.watched.key, encode_run(run))
            with self.lock:
                spool.append(entry.number, record)
                self._bare.discard(entry.number)
        except (OSError, TypeError, ValueError):  # counted when it was put, or by the store
            pass

    def settle(self, batch: Sequence[Entry], unscored: Sequence[tuple[str | None, str]] = ()) -> None:
        """All of the batch is saved or refused; these traces (key, trace id) have no score yet, the oldest first."""
        with self.lock:
            self._bare.difference_update(entry.number for entry in batch)
            self.waiting -= sum(entry.watched is not None for entry in batch)
            self._held -= sum(entry.size for entry in batch if entry.run is not None)
            if self.spool is not None and self.spool.ready:
                try:
                    self.spool.settle(batch[-1].number, json.dumps(unscored[:_NOTED]).encode() if unscored else b"")
                except OSError as error:  # what is stored is stored again then, which changes nothing
                    self.incidents.add("the spool could not be cut", error)

    # For the end

    @property
    def in_memory_alone(self) -> int:
        """How many of the waiting runs end with the process."""
        with self.lock:
            if self.spool is None:
                return len(self._bare)
            self.spool.look()
            return len(self._bare | self.spool.removed)

    def remember(self, unscored: Sequence[tuple[str | None, str]]) -> bool:
        """Note the traces (key, trace id) that are saved and not scored, for the next start. False without a spool."""
        with self.lock:
            if self.spool is None or not self.spool.ready:
                return False
            try:
                self.spool.append(self._number, json.dumps(unscored).encode(), kind=UNSCORED)
            except OSError:
                return False
        return True

    def close(self) -> None:
        """Remove what the spool need not keep."""
        with self.lock:
            if self.spool is not None and self.spool.ready and not self.waiting:
                self.spool.close()
