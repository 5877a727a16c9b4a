"""What the saver's thread does with the store: open it, write runs, put aside what it refuses, replay what dead
processes left."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cm2_agent.incidents import Incidents
from cm2_agent.online.forks import DATABASE
from cm2_agent.online.incident_counts import store_incidents
from cm2_agent.online.save_errors import is_another_store, meaning_of
from cm2_agent.spool.files import Spool
from cm2_agent.spool.refused import add_refused
from cm2_agent.spool.replay import Replayed, replay
from cm2_agent.types.protocols import Store
from cm2_agent.types.run import Run

__all__ = ["RunWriter"]

_STRIKES = 3
"""How often a run may fail for no clear reason while the store takes others."""


_inherited: list[Store] = []


class RunWriter:
    """One store, for one thread. `refused` counts the runs that it did not take. `reopens`: `open_store` makes a new
    store each time."""

    def __init__(
        self, open_store: Callable[[], Store], incidents: Incidents, spool: Spool | None, *, reopens: bool = False
    ) -> None:
        self.incidents, self.spool = incidents, spool
        self.refused = 0
        self._open_store, self._reopens = open_store, reopens
        self.forget()

    def in_child(self) -> None:
        """After a fork, in the child: the connection is the parent's, and must not even be closed here."""
        if self.store is not None:
            _inherited.append(self.store)
        self.forget()

    def forget(self) -> None:
        """Open the store anew with the next write."""
        self.store: Store | None = None
        self.failure: Exception | None = None
        self._file: tuple[str, int] | None = None
        self._writes = 0
        self._suspects: dict[int, list[int]] = {}
        """By number of the run: how often it failed alone, and how many writes had succeeded when it first did."""

    def open(self) -> bool:
        """Try to open the store, if it is not; `failure` says why it could not be."""
        if self.store is None:
            try:
                with DATABASE:
                    self.store = self._open_store()
                self.failure = None
                self._file = _file_of(self.store) if self._reopens else None
            except Exception as error:
                self.failure = error
        return self.store is not None

    def check_file(self) -> None:
        """Let go of an SQLite store whose file was removed or replaced: what is written to it would be gone."""
        if self._file is None or self.store is None or _inode(self._file[0]) == self._file[1]:
            return
        self.incidents.add("the store's file was removed or replaced, and was opened again")
        self._let_go()
        self.forget()

    def _let_go(self) -> None:
        """Open the store anew with the next write, and let what uses it meanwhile wait for that."""
        if callable(close := getattr(self.store, "close", None)):
            close()
        self.store = self._file = None

    def _away(self, error: Exception) -> Exception:
        if self._reopens and is_another_store(error):
            self._let_go()
        return error

    def write(self, runs: dict[int, Run]) -> Exception | None:
        """Save the runs, by number. What is saved or refused is taken out; where any is left, the error says why."""
        if not runs:
            return None
        try:
            self._save(list(runs.values()))
        except Exception as error:
            if meaning_of(error) == "away":
                return self._away(error)
        else:
            runs.clear()
            return None
        return self._one_by_one(runs)

    def write_all(self, runs: Sequence[Run]) -> None:
        """Save the runs, or refuse those that cannot be. Raises what the store raises when it is away."""
        error = self.write(dict(enumerate(runs)))
        if error is not None:
            raise error

    def traces_of(self, runs: Mapping[str, str]) -> dict[str, str]:
        """The trace that each saved run is part of, by the run's id, as the store placed it; given is what the runs
        themselves say, which holds in a store that places none."""
        placed: Any = getattr(self.store, "trace_ids", None)
        if placed is None:
            return dict(runs)
        try:
            with DATABASE:
                return {**runs, **placed(list(runs))}
        except Exception as error:
            self.incidents.add("it is unknown where a run was stored", error)
            return dict(runs)

    def _one_by_one(self, runs: dict[int, Run]) -> Exception | None:
        unclear: dict[int, Exception] = {}
        for number, run in list(runs.items()):
            try:
                self._save([run])
            except Exception as error:
                meaning = meaning_of(error)
                if meaning == "away":
                    return self._away(error)
                if meaning == "unclear":
                    unclear[number] = error
                    self._suspects.setdefault(number, [0, self._writes])
                    continue
                self.refuse(run, error)
            del runs[number]
            self._suspects.pop(number, None)
        if unclear:
            self.report()
        for number, reason in unclear.items():
            strikes, writes = self._suspects[number]
            if self._writes > writes:  # the store has taken something since
                self._suspects[number][0] = strikes + 1
                if strikes + 1 >= _STRIKES:
                    del self._suspects[number]
                    self.refuse(runs.pop(number), reason)
        return next((unclear[number] for number in runs), None)

    def _save(self, runs: Sequence[Run]) -> None:
        many: Any = getattr(self.store, "save_runs", None)
        with DATABASE:
            if callable(many):
                many(runs)
            else:
                assert self.store is not None
                for run in runs:
                    self.store.save_run(run)
        self._writes += 1

    def refuse(self, run: Run, error: BaseException) -> None:
        """Put a run aside that the store will never take."""
        self.refused += 1
        self.incidents.add("a run was not saved", error)
        if self.spool is None or not self.spool.ready:
            return
        try:
            add_refused(self.spool.folder, run, error)
        except OSError as failed:
            self.incidents.add("a refused run could not be put aside", failed)

    def replay(self, save: Callable[[Sequence[tuple[str | None, Run]]], None]) -> Replayed:
        """Hand the runs that dead processes left in the spool's folder to `save`, as (key, run)."""
        if self.spool is None or not self.spool.ready:
            return Replayed()
        try:
            found = replay(self.spool.folder, self.spool.about, save)
        except Exception as error:
            self.incidents.add("the spool of an earlier process was not replayed", error)
            return Replayed()
        for kind, count in (
            ("a run of an earlier process was never written to the spool", found.missing),
            ("a run in the spool of an earlier process could not be read", found.unreadable),
            ("the last record in the spool of an earlier process was torn", found.torn),
        ):
            if count:
                self.incidents.add(kind, number=count)
        return found

    def report(self) -> None:
        """Store what went wrong so far."""
        self._writes += store_incidents(self.store, self.incidents)


def _file_of(store: Store) -> tuple[str, int] | None:
    """The file of an SQLite store and its inode."""
    url = str(getattr(store, "url", ""))
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.startswith((":memory:", "file:")):
        return None
    path = os.path.abspath(path)
    inode = _inode(path)
    return None if inode is None else (path, inode)


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None
