"""What waits in a store's spool."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from cm2_agent.spool.files import SUFFIX
from cm2_agent.spool.folder import about, spool_of
from cm2_agent.spool.refused import count_refused
from cm2_agent.spool.replay import UNREADABLE, Leftover, leftovers

__all__ = ["SpoolStatus", "read_status"]


@dataclass
class SpoolStatus:
    """`runs` of ended processes by project, 0 where they left notes alone; files of `living` ones, `refused` runs,
    `unreadable` files."""

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
        if found.about.get("store") == store:
            waiting[found.about["project"]] += len(found.records)
        return False

    leftovers(spool.folder, count)
    names = os.listdir(spool.folder)
    return SpoolStatus(
        spool.folder,
        dict(waiting),
        living=sum(name.endswith(SUFFIX) for name in names) - ended,
        refused=count_refused(spool.folder),
        unreadable=sum(name.endswith(UNREADABLE) for name in names),
    )
