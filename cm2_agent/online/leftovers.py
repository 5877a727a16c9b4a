"""Runs that ended processes left in a store's spool, saved by hand: `cm2 spool replay`."""

from __future__ import annotations

from collections.abc import Sequence

from cm2_agent.incidents import Incidents
from cm2_agent.online.run_writer import RunWriter
from cm2_agent.spool.files import Spool
from cm2_agent.spool.folder import spool_of
from cm2_agent.spool.replay import Replayed, replay
from cm2_agent.spool.status import read_status
from cm2_agent.store.sql_store import SQLStore
from cm2_agent.types.run import Run

__all__ = ["save_leftovers"]


def save_leftovers(url: str, folder: str | None = None) -> Replayed:
    """Save what ended processes left in the spool of the store behind a URL, each run in its project; none is scored.
    Raises StoreError where the store is away; the files then stay."""
    total = Replayed()
    for project in read_status(url, folder).runs:
        spool = spool_of(url, project, folder)
        assert spool is not None
        spool.prepare()
        with SQLStore(url, project=project) as store:
            found = _replay(spool, _writer(store, spool))
        total.runs += found.runs
        total.unreadable += found.unreadable
        total.torn += found.torn
        total.missing += found.missing
    return total


def _writer(store: SQLStore, spool: Spool) -> RunWriter:
    writer = RunWriter(lambda: store, Incidents(), spool)
    writer.open()
    return writer


def _replay(spool: Spool, writer: RunWriter) -> Replayed:
    def save(runs: Sequence[tuple[str | None, Run]]) -> None:
        writer.write_all([run for _, run in runs])

    found = replay(spool.folder, spool.about, save)
    found.runs -= writer.refused
    writer.report()
    return found
