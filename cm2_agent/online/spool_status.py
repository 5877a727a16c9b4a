"""What waits in a store's spool, and how it is saved by hand: `cm2 spool`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cm2_agent.incidents import Incidents
from cm2_agent.online.run_writer import REFUSED, RunWriter
from cm2_agent.online.spool import SUFFIX, Spool
from cm2_agent.online.spool_folder import about, spool_of
from cm2_agent.online.spool_replay import UNREADABLE, Leftover, Replayed, leftovers, replay
from cm2_agent.types.run import Run

__all__ = ["SpoolStatus", "read_status", "save_leftovers"]


@dataclass
class SpoolStatus:
    """`runs` of ended processes by project, files of `living` ones, `refused` runs, `unreadable` files."""

    folder: str | None
    runs: dict[str, int] = field(default_factory=dict)
    living: int = 0
    refused: int = 0
    unreadable: int = 0


def read_status(url: str, folder: str | None = None) -> SpoolStatus:
    """What is in the spool of the store behind a URL; nothing is changed. Raises OSError."""
    spool = spool_of(url, None, folder)
    if spool is None or not os.path.isdir(spool.folder):
        return SpoolStatus(None if spool is None else spool.folder)
    waiting: Counter[str] = Counter()
    ended = 0
    store = about(url, None)["store"]

    def count(found: Leftover) -> bool:
        nonlocal ended
        ended += len(found.paths)
        if found.about.get("store") == store and found.records:
            waiting[found.about["project"]] += len(found.records)
        return False

    leftovers(spool.folder, count)
    names = os.listdir(spool.folder)
    return SpoolStatus(
        spool.folder,
        dict(waiting),
        living=sum(name.endswith(SUFFIX) for name in names) - ended,
        refused=_lines(os.path.join(spool.folder, REFUSED)),
        unreadable=sum(name.endswith(UNREADABLE) for name in names),
    )


def save_leftovers(url: str, folder: str | None = None) -> Replayed:
    """Save what ended processes left in the spool of the store behind a URL, each run in its project; none is scored.
    Raises StoreError where the store is away; the files then stay."""
    from cm2_agent.store import SQLStore

    total = Replayed()
    for project in read_status(url, folder).runs:
        spool = spool_of(url, project, folder)
        assert spool is not None
        spool.prepare()
        with SQLStore(url, project=project) as store:
            found = _replay(spool, RunWriter(lambda store=store: store, Incidents(), spool))  # type: ignore[misc]
        total.runs += found.runs
        total.unreadable += found.unreadable
        total.torn += found.torn
        total.missing += found.missing
    return total


def _replay(spool: Spool, writer: RunWriter) -> Replayed:
    writer.open()

    def save(runs: Sequence[tuple[str | None, Run]]) -> None:
        left = {number: run for number, (_, run) in enumerate(runs)}
        if (error := writer.write(left)) is not None:
            raise error

    found = replay(spool.folder, spool.about, save)
    found.runs -= writer.refused
    writer.report()
    return found


def _lines(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return 0
