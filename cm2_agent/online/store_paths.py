"""The paths of this process to its stores: one saver and one scoring path for each, and what the end of the process
does with them.

What is needed is imported with this module, not when it is used: a fork in the middle of an import deadlocks, and an
import may block an event loop."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import thread as executors
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from typing import Any

from cm2_agent.errors import MissingExtra
from cm2_agent.incidents import Incidents, logger
from cm2_agent.online.live import STALLED, Live
from cm2_agent.online.saver import Saver
from cm2_agent.online.scoring import ScoringPath
from cm2_agent.spool.files import Spool
from cm2_agent.spool.folder import spool_of
from cm2_agent.store.engine import parse
from cm2_agent.store.sql_store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import Store

__all__ = ["StorePaths", "flush_all", "open_store", "paths_to"]

_EXIT_SECONDS = 10.0
"""How long the end of the process waits for what is not saved and scored; CM2_EXIT_SECONDS says otherwise."""
_LATE_SECONDS = 2.0
"""How long it waits, at most, for runs of threads that went on after that."""
_OPEN_SECONDS = 2.0
"""How long `watch` waits for a store to open."""


@dataclass(eq=False)
class StorePaths:
    """Saver and scoring path of one store."""

    saver: Saver
    scoring: ScoringPath
    folder: str | None = None
    """Where the file of an SQLite store is."""
    _checklists: tuple[object, dict[str, Checklist]] = (None, {})

    @property
    def hopeless(self) -> bool:
        """The folder of the store was removed, or never there: not what is over in a moment, like a lock."""
        return self.folder is not None and not os.path.isdir(self.folder)

    def checklists_in(self, store: Store) -> dict[str, Checklist]:
        """The checklists known to be in this store, by the hash of what was given."""
        if self._checklists[0] is not store:  # it was opened again, and may be another file
            self._checklists = (store, {})
        return self._checklists[1]


_by_url: dict[tuple[str, ...], StorePaths] = {}
_by_object: weakref.WeakValueDictionary[int, StorePaths] = weakref.WeakValueDictionary()
_lives: weakref.WeakSet[Live] = weakref.WeakSet()
_lock = threading.RLock()
_ended: list[int] = []


def paths_to(store: Store | str, *, project: str | None, spool: str | PathLike[str] | None) -> StorePaths:
    """The paths to a store: the same ones for the same URL, project and spool. Raises StoreError for what is no URL,
    MissingExtra, and ValueError for a project beside a store that has one of its own."""
    if isinstance(store, str):
        store = _whole(store)
        key = (store, project or "", "" if spool is None else os.fspath(spool))
        with _lock:
            found = _by_url.get(key)
            if found is None:
                found = _paths(_opener(store, project), spool_of(store, project, spool), reopens=True)
                if store.startswith("sqlite:////"):  # a whole path
                    found.folder = os.path.dirname(store.removeprefix("sqlite:///"))
                _by_url[key] = found
        return found
    if project is not None:
        raise ValueError(
            f"project={project!r} was given beside a {type(store).__name__}, which has its own; expected one of them:"
            " SQLStore(url, project=…), or the URL and project="
        )
    with _lock:
        kept = _by_object.get(id(store))
        if kept is None:
            given = store
            kept = _by_object[id(store)] = _paths(
                lambda: given, spool_of(getattr(store, "url", None), getattr(store, "project", None), spool)
            )
            weakref.finalize(kept, kept.saver.stop).atexit = False
    return kept


def _paths(opener: Callable[[], Store], spool: Spool | None, *, reopens: bool = False) -> StorePaths:
    incidents = Incidents()
    scoring = ScoringPath(incidents)
    saver = Saver(
        opener,
        incidents,
        spool=spool,
        reopens=reopens,
        on_start=_at_process_start,
        unscored=lambda: scoring.unscored,
    )
    return StorePaths(saver, scoring)


def _opener(url: str, project: str | None) -> Callable[[], Store]:
    return lambda: SQLStore(url) if project is None else SQLStore(url, project=project)


def _whole(url: str) -> str:
    """The URL with the whole path of an SQLite file: the application may go to another folder. Raises StoreError for
    what is no URL, and MissingExtra."""
    parsed = parse(url)
    if parsed.get_backend_name() == "postgresql":
        if find_spec("psycopg") is None:
            raise MissingExtra("postgres", "PostgreSQL stores")
        return url
    name = parsed.database
    if name in (None, "", ":memory:") or str(name).startswith("file:"):
        return url
    folder = os.fsdecode(os.getcwdb())  # not getcwd, which counts as blocking where event loops are watched
    return parsed.set(database=os.path.normpath(os.path.join(folder, str(name)))).render_as_string(hide_password=False)


def open_store(live: Live, *, strict: bool) -> None:
    """Open the store of a graph. A store that is away stops nobody: its runs wait. With `strict`, raises why it could
    not be opened."""
    _lives.add(live)
    try:
        asyncio.get_running_loop()
        timeout: float | None = 0.0  # nothing may block an event loop
    except RuntimeError:
        timeout = _OPEN_SECONDS
    failure = live.start(None if strict else timeout) or live.failure
    if strict and failure is not None:
        _forget(live)
        raise failure
    if isinstance(failure, TimeoutError) and timeout:
        logger.warning("the store has not answered for %g s; the application goes on, and runs wait for it", timeout)


def _forget(live: Live) -> None:
    """A graph that is not watched after all, and its store, where no other graph uses it."""
    _lives.discard(live)
    with _lock:
        if not any(other.saver is live.saver for other in _lives):
            for key in [key for key, paths in _by_url.items() if paths.saver is live.saver]:
                del _by_url[key]
            live.saver.stop()


def flush_all(timeout: float | None, *, ending: bool = False) -> bool:
    """Wait until every run of every watched graph is saved and scored, and sinks that can be flushed are. `ending`: not
    for a store that will not come back in time."""
    deadline = None if timeout is None else time.monotonic() + timeout
    done = True
    wanted = [paths for paths in _all() if not (ending and paths.hopeless)]
    for paths in wanted:
        done = paths.saver.flush(deadline, STALLED) and done
    for paths in wanted:
        done = paths.scoring.flush(deadline, STALLED) and done
    for live in list(_lives):
        for sink in live.middleware.sinks:
            if callable(wait := getattr(sink, "flush", None)):
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                done = wait(left) is not False and done
    return done


def _all() -> list[StorePaths]:
    with _lock:
        return [*_by_url.values(), *_by_object.values()]


# The end of the process. First, while executors still take work, so that judges can be asked; then, when all threads
# have ended, for what they did meanwhile. A child of multiprocessing ends by os._exit, after its finalizers.


before_end: list[Callable[[], None]] = []
"""What is called when all threads have ended, before the last runs are saved."""


def _patience() -> float:
    try:
        return max(0.0, float(os.environ.get("CM2_EXIT_SECONDS", "")))
    except ValueError:
        return _EXIT_SECONDS


def _before_executors_close() -> None:
    flush_all(_patience(), ending=True)


def _at_end() -> None:
    if os.getpid() in _ended:
        return
    _ended.append(os.getpid())
    for see_to in before_end:
        see_to()
    deadline = time.monotonic() + min(_LATE_SECONDS, _patience())
    for paths in _all():
        saver, scoring = paths.saver, paths.scoring
        if not paths.hopeless:
            saver.flush(deadline, STALLED)
            scoring.flush(deadline, STALLED)
        where = None if saver.spool is None or not saver.spool.ready else saver.spool.folder
        lost = saver.queue.in_memory_alone
        if spooled := saver.queue.waiting - lost:
            _say(f"{_runs(spooled)} not saved and wait{'s' * (spooled == 1)} in {where} for the next start")
        if lost:
            why = "there is no spool" if where is None else f"{where} was removed, or could not be written to"
            _say(f"{_runs(lost)} not saved and lost: {why}")
        if unscored := scoring.unscored:
            later = "the next start scores them" if saver.queue.remember(unscored) else "cm2 score scores them"
            _say(f"{len(unscored)} traces are stored without a score; {later}")
        saver.queue.close()


def _runs(count: int) -> str:
    return "1 run is" if count == 1 else f"{count} runs are"


def _say(what: str) -> None:
    if sys.stderr is not None:
        print(f"cm2_agent: {what}", file=sys.stderr, flush=True)


def _at_process_start() -> None:
    """The first run of a process: see to its end, where that is not the interpreter's."""
    process: Any = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or _finalized.get("pid") == os.getpid():
        return
    from multiprocessing.util import Finalize

    _finalized["pid"] = os.getpid()
    Finalize(None, _at_child_end, exitpriority=100)


def _at_child_end() -> None:
    flush_all(_patience(), ending=True)
    _at_end()


_finalized: dict[str, int] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
atexit.register(_at_end)
_register: Any = getattr(threading, "_register_atexit", None)
if callable(_register):  # not public, and since 3.9 in every version: without it a judge is not asked at the end
    assert executors  # registered before ours, so that it is called after it
    _register(_before_executors_close)
