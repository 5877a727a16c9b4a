"""`Claims`: pieces of work that one process has, so that no other does them too. A dead process's are anybody's."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, delete, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from cm2_agent.errors import ClaimLost, StoreError
from cm2_agent.store.codec import seal, unseal
from cm2_agent.store.reader import chunks
from cm2_agent.store.work_tables import claims

if TYPE_CHECKING:
    from cm2_agent.store.sql_store import SQLStore
    from cm2_agent.store.statements import Statements

LEASE = 60.0
"""Seconds after which a claim that is not renewed is anybody's."""


class Claim(NamedTuple):
    """One piece of work by its name, and who has it."""

    name: str
    owner: str

    def hand_in(self, target: Any, statements: Statements, project: str) -> None:
        """Give it back within a transaction. Raises ClaimLost where it is another's by now."""
        if statements.no_claim.row(target, (project, seal(self.name), self.owner)) is None:
            raise ClaimLost(
                f"another process has taken {self.name!r} over, since this one did not renew its claim in time; it"
                " stores the work itself"
            )


class Claims:
    """What this process has claimed in a project of the store. A thread of its own renews the claims until they are
    released: a model that keeps the event loop busy loses none. `seconds` is how long one lasts without that; where
    the owner ran on this machine and has ended, nobody waits for it.

    Shared by the threads of a process. Raises StoreError."""

    def __init__(self, store: SQLStore, *, seconds: float = LEASE) -> None:
        self._db, self._project, self.seconds = store.database, seal(store.project), seconds
        self.owner = f"{_here()}/{os.getpid()}/{_began(os.getpid())}/{uuid4().hex}"
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def busy(self, names: Collection[str]) -> set[str]:
        """Those of these that other processes have."""
        if not names:
            return set()
        with self._db.reading() as connection:
            now = self._now(connection)
            return {unseal(row.name) for row in self._rows(connection, names) if self._is_anothers(row, now)}

    def take(self, names: Collection[str]) -> dict[str, bool]:
        """Claim those of these that are free, in one transaction: those that are this process's now, each with whether
        it was another's that ended without it."""
        taken: dict[str, bool] = {}
        if not names:
            return taken
        with self._db.writing() as connection:
            now = self._now(connection)
            until = now + round(self.seconds * 1e9)
            held = {row.name: row for row in self._rows(connection, names)}
            for name in sorted(map(seal, names)):  # the same order in every process, so that none waits in a circle
                row = held.get(name)
                if row is not None and self._is_anothers(row, now):
                    continue
                if self._claim(connection, name, until, row):
                    taken[unseal(name)] = row is not None and row.owner != self.owner
        with self._lock:
            self._held.update(taken)
            if taken and self._thread is None:
                self._ended.clear()
                self._thread = threading.Thread(target=self._renew, name="cm2-claims", daemon=True)
                self._thread.start()
        return taken

    def claim(self, name: str) -> Claim:
        """The claim on a piece of work, for `SQLStore.save_dialogue` to hand in with its result."""
        return Claim(name, self.owner)

    def holds(self, name: str) -> bool:
        """Whether this process has claimed it and not given it back, as far as it knows."""
        return name in self._held

    def forget(self, name: str) -> None:
        """The claim was handed in, or lost."""
        with self._lock:
            self._held.discard(name)

    def release(self, names: Iterable[str]) -> None:
        """Give these back."""
        given = list(names)
        with self._lock:
            self._held.difference_update(given)
        with self._db.writing() as connection:
            for chunk in chunks([seal(name) for name in given]):
                own = (claims.c.project == self._project, claims.c.name.in_(chunk), claims.c.owner == self.owner)
                connection.execute(delete(claims).where(*own))

    def drop_expired(self, prefix: str) -> None:
        """Remove the claims of ended processes on what is named so, which nobody will take over."""
        with self._db.writing() as connection:
            gone = (claims.c.project == self._project, claims.c.name.startswith(seal(prefix), autoescape=True))
            connection.execute(delete(claims).where(*gone, claims.c.until <= self._now(connection)))

    def close(self) -> None:
        """Give everything back, and renew nothing any more."""
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._lock:
            left = list(self._held)
        if left:
            self.release(left)

    def _claim(self, connection: Connection, name: str, until: int, row: Any) -> bool:
        if row is None:
            insert: Any = sqlite.insert if self._db.sqlite else postgresql.insert
            values = {"project": self._project, "name": name, "owner": self.owner, "until": until}
            made = insert(claims).values(values).on_conflict_do_nothing().returning(claims.c.name)
            return connection.execute(made).first() is not None
        seen = (claims.c.owner == row.owner, claims.c.until == row.until)
        mine = update(claims).where(claims.c.project == self._project, claims.c.name == name, *seen)
        return connection.execute(mine.values(owner=self.owner, until=until)).rowcount == 1

    def _is_anothers(self, row: Any, now: int) -> bool:
        return row.owner != self.owner and row.until > now and not is_dead(row.owner)

    def _rows(self, connection: Connection, names: Iterable[str]) -> Iterable[Any]:
        for chunk in chunks([seal(name) for name in names]):
            yield from connection.execute(
                select(claims).where(claims.c.project == self._project, claims.c.name.in_(chunk))
            )

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / 3):
            try:
                with self._db.writing() as connection:
                    own = update(claims).where(claims.c.project == self._project, claims.c.owner == self.owner)
                    connection.execute(own.values(until=self._now(connection) + round(self.seconds * 1e9)))
            except StoreError:  # the store is away; what expires meanwhile is noticed when it is handed in
                continue

    def _now(self, connection: Connection) -> int:
        """Nanoseconds since the epoch, by the one clock that all claims go by: the server's, or this machine's."""
        if self._db.sqlite:
            return time.time_ns()
        return int(connection.scalar(text("SELECT (extract(epoch FROM clock_timestamp()) * 1e9)::bigint")) or 0)


def is_dead(owner: str) -> bool:
    """Whether a claim's owner ran on this machine and has ended; False where that cannot be seen from here."""
    here, pid, began, _ = owner.split("/")
    return here == _here() and began != "" and pid.isdecimal() and _began(int(pid)) != began


@cache
def _here() -> str:
    """This machine since it was started, and within it the space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname().replace("/", "_")


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine's start; "" where there is none, or only its exit status."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state[0] in "ZX" else state[19]


__all__ = ["LEASE", "Claim", "Claims", "is_dead"]
