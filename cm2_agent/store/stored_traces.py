"""The traces of a project as they are read: the methods of `SQLStore` that give some of them, with or without their
scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cm2_agent.errors import StoreError
from cm2_agent.store import queries
from cm2_agent.store import scores as scoring
from cm2_agent.store.changes import TraceChanges
from cm2_agent.store.engine import Database
from cm2_agent.store.reader import Reader
from cm2_agent.store.selection import Selection
from cm2_agent.store.trace_filter import TraceFilter
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace


class StoredTraces:
    """The methods of `SQLStore` that read traces."""

    _db: Database
    _project: str

    def trace(self, trace_id: str) -> Trace | None:
        """The trace as it was saved, None where there is none."""
        with self._db.reading() as connection:
            found = queries.cursors(connection, self._project, [trace_id])
            return Reader(connection).traces([found[0][2]])[0] if found else None

    def holds(self, trace_id: str) -> bool:
        """Whether a trace of that id is stored."""
        return bool(self.stored([trace_id]))

    def stored(self, ids: Iterable[str]) -> set[str]:
        """Which of these traces are stored."""
        with self._db.asking() as cursor:
            return set(queries.counts(cursor, self._db.sqlite, self._project, list(ids)))

    def run_counts(self, ids: Iterable[str]) -> dict[str, int]:
        """How many runs each of these traces has. Traces with outcomes, and those not stored, are left out."""
        with self._db.asking() as cursor:
            found = queries.counts(cursor, self._db.sqlite, self._project, list(ids))
            return {trace_id: runs for trace_id, (runs, outcomes) in found.items() if not outcomes}

    def traces(
        self,
        where: TraceFilter | None = None,
        *,
        unscored: bool = False,
        reward: str | None = None,
        task: str | None = None,
        policy: str | None = None,
        user: str | None = None,
        session: str | None = None,
        tag: str | None = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        after: str | None = None,
    ) -> Iterator[Trace]:
        """Traces by the start of their first run, then by id; read in pages, so that saving meanwhile is fine.

        Args:
            where: those that this filter lets through; the next ones narrow it further.
            unscored: those without a score, NULL or not, under `reward` (under any version where none is named).
            reward: those with a score under this version (with `unscored`: without one).
            task: those of this task id.
            policy: those whose every step this policy version wrote.
            user: those of this user, by the application's id.
            session: those of this session, by the application's id.
            tag: those whose caller's tags hold this one.
            ids: among these; ids that are not stored are left out.
            limit: at most so many.
            newest_first: in the opposite order.
            after: those that come after this trace in the order, by its id: the next page.

        Raises:
            StoreError: an item that should have failed is in no checklist; `after` is not stored.

        >>> from cm2_agent import Message, Run, SQLStore
        >>> with SQLStore("sqlite://") as store:
        ...     store.save_run(Run(id="r1", messages=(Message.of("user", "Hi"),)))
        ...     [trace.id for trace in store.traces(unscored=True)]
        ['r1']
        """
        short = TraceFilter(task=task, policy=policy, user=user, session=session, tags=() if tag is None else (tag,))
        filters = (short,) if where is None else (where, short)
        wanted = Selection(project=self._project, filters=filters, unscored=unscored, reward=reward)
        for seqs in self._pages(wanted, ids, limit=limit, newest_first=newest_first, after=after):
            with self._db.reading() as connection:
                page = Reader(connection).traces(seqs)
            yield from page

    def scored_traces(
        self,
        where: TraceFilter | None = None,
        *,
        reward: str | None = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        after: str | None = None,
    ) -> Iterator[tuple[Trace, Score | None]]:
        """Traces with their current scores, in the order of `traces`; None for those that have no score.

        Args:
            where: those that this filter lets through.
            reward: the scores under this version; by default each trace's newest, as `score` takes it.
            ids: among these; ids that are not stored are left out.
            limit: at most so many.
            newest_first: in the opposite order.
            after: those that come after this trace in the order, by its id.

        Raises:
            StoreError: an item that should have failed is in no checklist; `after` is not stored.

        >>> from cm2_agent import Message, Run, Score, SQLStore, TraceFilter
        >>> with SQLStore("sqlite://") as store:
        ...     for name, reward in (("bad", 0.2), ("good", 1.0)):
        ...         store.save_run(Run(id=name, messages=(Message.of("user", "Hi"),)))
        ...         store.save_score(Score(trace_id=name, reward_version="v1", reward=reward))
        ...     low = store.scored_traces(TraceFilter(reward_below=0.5))
        ...     [(trace.id, score.reward) for trace, score in low]
        [('bad', 0.2)]
        """
        wanted = Selection(project=self._project, filters=() if where is None else (where,))
        for seqs in self._pages(wanted, ids, limit=limit, newest_first=newest_first, after=after):
            with self._db.reading() as connection:
                page = Reader(connection).traces(seqs)
                found = scoring.of_traces(connection, seqs, reward)
            yield from ((trace, found.get(seq)) for seq, trace in zip(seqs, page, strict=True))

    def count_traces(self, where: TraceFilter | None = None) -> int:
        """How many traces a filter lets through; all of the project without one."""
        return queries.count(self._db, Selection(project=self._project, filters=() if where is None else (where,)))

    def selected(self, where: TraceFilter) -> list[str]:
        """The ids of the traces that a filter lets through, in the order of `traces`."""
        wanted = Selection(project=self._project, filters=(where,))
        found: list[str] = []
        for seqs in queries.pages(self._db, wanted):
            with self._db.reading() as connection:
                found += queries.ids_of(connection, seqs)
        return found

    def changes(self) -> TraceChanges:
        """What changes from now on: `changes.next()` gives the ids of the traces with new runs or scores."""
        return TraceChanges(self._db, self._project)

    def ids_like(self, beginning: str, most: int = 5) -> list[str]:
        """The ids of traces that begin so, at most so many, in alphabetical order."""
        with self._db.reading() as connection:
            return queries.ids_like(connection, self._project, beginning, most)

    def _pages(
        self,
        wanted: Selection,
        ids: Iterable[str] | None,
        *,
        limit: int | None,
        newest_first: bool,
        after: str | None,
    ) -> Iterator[list[int]]:
        cursor = None
        if after is not None:
            with self._db.reading() as connection:
                found = queries.cursors(connection, self._project, [after])
            if not found:
                raise StoreError(f"there is no trace {after!r} to go on after; expected the id of a stored trace")
            cursor = found[0]
        left = limit
        for seqs in queries.pages(self._db, wanted, ids, after=cursor, newest_first=newest_first):
            if left is not None and left <= 0:
                return
            yield seqs[:left]
            left = None if left is None else left - len(seqs[:left])


__all__ = ["StoredTraces"]
