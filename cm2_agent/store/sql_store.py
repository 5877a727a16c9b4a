"""`SQLStore(url)`: runs, tasks, checklists, scores and labels in one SQL database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cm2_agent.errors import StoreError
from cm2_agent.store import human_labels as labelling
from cm2_agent.store import migrate, queries
from cm2_agent.store.claims import Claim
from cm2_agent.store.codec import seal
from cm2_agent.store.encoder import PackedRun, Packer
from cm2_agent.store.engine import Database
from cm2_agent.store.erasing import Erasure, chosen, run_erasure
from cm2_agent.store.human_labels import LabelCounts
from cm2_agent.store.lineage import place_runs
from cm2_agent.store.policies import Policies
from cm2_agent.store.replacing import replace_run
from cm2_agent.store.schema import DEFAULT_PROJECT
from cm2_agent.store.scored import Scored
from cm2_agent.store.scores import KnownRewards, ScoreWriter, finite
from cm2_agent.store.statements import statements
from cm2_agent.store.stored_traces import StoredTraces
from cm2_agent.store.trace_state import ATTEMPTS, Caches, Stale
from cm2_agent.store.writer import Writer, WriteResult, require_one_trace
from cm2_agent.types.human_labels import Label
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    from cm2_agent.store.checkpoints import StoreCheckpointer


KNOWN_RUNS = 4096
"""How many saved runs' traces are remembered."""


class SQLStore(StoredTraces, Scored, Policies):
    """Runs, tasks, checklists, scores and policies in one SQL database.

    `url`: `sqlite:///FILE.db` (four slashes for an absolute path; `sqlite://` keeps it in memory) or
    `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE` (`pip install "cm2-agent[postgres]"`). An empty database gets its
    tables; an older schema is left alone (`cm2 db upgrade`). With `create=False` a file that does not exist is an
    error. Every save is one transaction and may be repeated: what is stored already stays as it is. Threads may share a
    store.

    `project` separates applications that share a database: traces, runs, scores, labels and checkpoints are those of
    the project, within which their ids are unique; tasks, checklists, reward versions, caches and `health` are the
    database's. Raises StoreError, SchemaError, MissingExtra.

    >>> from cm2_agent import Message, Run, SQLStore
    >>> with SQLStore("sqlite://") as store:
    ...     store.save_run(Run(id="r1", messages=(Message.of("user", "Where is order 7?"),)))
    ...     store.trace("r1").messages[0].text
    'Where is order 7?'
    """

    def __init__(self, url: str, *, project: str = DEFAULT_PROJECT, echo: bool = False, create: bool = True) -> None:
        if not isinstance(project, str) or not project.strip():
            raise StoreError(f"project is {project!r}; expected its name, such as {DEFAULT_PROJECT!r}")
        database = Database(url, echo=echo, create=create)
        try:
            migrate.ensure(database)
        except BaseException:
            database.close()
            raise
        self._open(database, project)

    def _open(self, database: Database, project: str) -> None:
        self.project = project
        """The project whose traces are read and written."""
        self._project = seal(project)
        self._db = database
        self._do = statements(self._db.engine)
        self._caches = Caches()
        self._placed: dict[str, str] = {}  # the traces of the runs that were saved last
        self._rewards = KnownRewards()
        self._writer = Writer(self._do, self._caches, project=self._project, sqlite=self._db.sqlite)
        self._scorer = ScoreWriter(self._do, self._rewards)

    @property
    def database(self) -> Database:
        """The connection, for what else is kept in the database."""
        return self._db

    def in_project(self, project: str) -> SQLStore:
        """The same database with the traces of another project. They share the connection: closing one closes both."""
        other = object.__new__(type(self))
        other._open(self._db, project)
        return other

    def close(self) -> None:
        """Close every connection; the store cannot be used afterwards."""
        self._db.close()

    def __enter__(self) -> SQLStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        named = "" if self.project == DEFAULT_PROJECT else f", project={self.project!r}"
        return f"SQLStore({self.url!r}{named})"

    def projects(self) -> list[str]:
        """The projects that hold traces, in order."""
        with self._db.reading() as connection:
            return queries.projects(connection)

    # Traces

    def save_run(self, run: Run) -> None:
        """Store a run; runs of a thread may come in any order. A run that names no trace gets its place in the
        conversation (`save_runs`). Raises ConflictError where another content is stored under its id."""
        self.save_runs([run])

    def save_runs(self, runs: Iterable[Run], *, also: Callable[[Any], None] | None = None) -> int:
        """Store runs of any traces in one transaction and return how many were new.

        A run is part of its thread's trace, or of a branch of it where it began in an earlier state; without a thread
        it goes on with the stored conversation that says just what it was shown (docs/method.md, "Branches").
        `trace_ids` says where a run went. A run with a `trace` of its own is stored there. `also` writes something else
        within the transaction: it gets a cursor of the driver, or a Connection."""
        return self._save(list(runs), place=True, also=also)

    def trace_ids(self, runs: Iterable[str]) -> dict[str, str]:
        """The trace that each of these runs is part of, by the runs' ids; those that are not stored are left out.

        >>> from cm2_agent import Message, Run, SQLStore
        >>> with SQLStore("sqlite://") as store:
        ...     store.save_run(Run(id="r1", thread="t", messages=(Message.of("user", "Hi"),)))
        ...     store.trace_ids(["r1", "r2"])
        {'r1': 't'}
        """
        found = {run: self._placed.get(run) for run in runs}
        missing = [run for run, trace in found.items() if trace is None]
        if missing:
            with self._db.reading() as connection:
                found.update(queries.traces_of_runs(connection, self._project, missing))
        return {run: trace for run, trace in found.items() if trace is not None}

    def save_trace(self, trace: Trace) -> bool:
        """Store a trace with its outcomes; True where any of its runs was new. Runs are read back by their start, then
        in the order of storing."""
        require_one_trace(trace.runs, trace.id)
        return self._save(trace.runs, outcomes=trace.outcomes, trace_id=trace.id) > 0

    def save_dialogue(
        self,
        runs: Iterable[Run],
        score: Score | None = None,
        outcomes: Mapping[str, float | None] | None = None,
        *,
        claim: Claim | None = None,
    ) -> int:
        """A finished dialogue in one transaction: its runs, its score where it has one, its outcomes. Returns how many
        runs were new. A `claim` is given back with it; where another process has it by now, ClaimLost is raised and
        nothing is stored."""
        given = list(runs)
        if not given:
            raise StoreError("a dialogue has no runs; expected at least one")
        trace_id = given[0].trace_id
        require_one_trace(given, trace_id)
        if score is not None and score.trace_id != trace_id:
            raise StoreError(
                f"the score is of trace {score.trace_id!r}, the runs of {trace_id!r}; expected a dialogue and its own"
                " score"
            )
        return self._save(given, outcomes=outcomes or {}, score=score, trace_id=trace_id, claim=claim)

    def _save(
        self,
        runs: Sequence[Run],
        *,
        outcomes: Mapping[str, float | None] | None = None,
        score: Score | None = None,
        trace_id: str | None = None,
        place: bool = False,
        claim: Claim | None = None,
        also: Callable[[Any], None] | None = None,
    ) -> int:
        given = list(runs)
        if not given and trace_id is None:
            return 0
        ends = [(seal(name), finite(value, f"outcome {name!r}")) for name, value in (outcomes or {}).items()]

        def save(
            target: Any, packer: Packer, packed: Sequence[PackedRun], loaded: Any
        ) -> tuple[WriteResult, KnownRewards]:
            if claim is not None:
                claim.hand_in(target, self._do, self._project)
            written = self._writer.write(
                target, packed, packer.contents, empty=empty, place=place and loaded is None, loaded=loaded
            )
            learned = KnownRewards()
            if trace_id is not None:
                seq = written.traces[seal(trace_id)].seq
                self._do.outcome.many(target, [(seq, *end) for end in ends])
                if score is not None:
                    chains = None if loaded is None else self._scorer.load(target, [score], {trace_id: seq})
                    self._scorer.write(target, [score], {trace_id: seq}, learned, chains)
            if also is not None:
                also(target)
            return written, learned

        empty = trace_id if not given else None
        for attempt in range(ATTEMPTS):
            seen = self._caches.erasures
            packer = Packer(self._caches.contents, {} if attempt else self._caches.take_prefixes(given))
            packed = [packer.pack(run) for run in given]
            try:
                if attempt == 0:
                    with self._db.storing() as cursor:
                        written, learned = save(cursor, packer, packed, None)
                else:
                    with self._db.writing() as connection:
                        if place:
                            packed = place_runs(
                                connection, self._project, packed, packer.contents, sqlite=self._db.sqlite
                            )
                        loaded = self._writer.load(connection, packed, empty)
                        written, learned = save(connection, packer, packed, loaded)
            except Stale as stale:
                if stale.erasures is not None and stale.erasures != self._caches.erasures:
                    self._caches.forget(stale.erasures)
                continue
            alone = _alone(packed, written)
            states = [state for state in written.traces.values() if state.id not in alone]
            prefixes = {id: known for id, known in packer.prefixes.items() if seal(id) not in alone}
            self._caches.learn(states, written.contents, written.group_keys, prefixes, seen)
            self._rewards.learn(learned, {state.seq for state in states})
            if place:
                if len(self._placed) > KNOWN_RUNS:
                    self._placed.clear()
                self._placed.update({run.run.id: run.run.trace_id for run in packed})
            return written.new
        raise StoreError(f"store {self.url}: other processes keep changing these traces; save the runs again")

    def replace_run(self, run: Run) -> str:
        """Put a run in the place of the stored one of its id and return the id of its trace, whose scores stay until it
        is scored again. Raises StoreError where no such run is stored."""
        for _ in range(ATTEMPTS):
            try:
                with self._db.writing() as connection:
                    return replace_run(connection, self._writer, self._caches, self._project, run)
            except Stale as stale:
                self._caches.forget(stale.erasures or self._caches.erasures)
        raise StoreError(f"store {self.url}: other processes keep changing the trace of run {run.id!r}; try again")

    def save_outcome(self, trace_id: str, name: str, value: float | None) -> None:
        """A result known from elsewhere; replaced on saving again. Raises StoreError where the trace is not stored."""
        number = finite(value, f"outcome {name!r}")
        with self._db.writing() as connection:
            seq = queries.rows_of(connection, self._project, [trace_id], url=self.url)[trace_id]
            self._do.outcome.many(connection, [(seq, seal(name), number)])

    def erase(
        self,
        *,
        user: str | None = None,
        thread: str | None = None,
        older_than: timedelta | None = None,
        everything: bool = False,
        dry_run: bool = False,
        spool: Iterable[str | PathLike[str]] = (),
    ) -> Erasure:
        """Erase traces of the project that meet every condition given, with all that was derived from them: runs,
        calls, contents that no other trace has, scores, verdicts, labels, outcomes, cached verdicts and simulations
        that quote them, and dialogues under way. The files are then rewritten and searched for what was erased.

        Args:
            user: traces of this user, by the application's id, with the branches that begin with them.
            thread: those of this conversation, and its branches.
            older_than: those whose last run ended longer ago, and dialogues under way that rested as long.
            everything: all traces of the project.
            dry_run: only say what would be removed.
            spool: folders of write-ahead files (`watch(spool=…)`) to search too.

        Raises:
            StoreError: nothing was named, or the database cannot be written.

        >>> from cm2_agent import Message, Run, SQLStore
        >>> with SQLStore("sqlite://") as store:
        ...     store.save_run(Run(id="r1", user="ann", messages=(Message.of("user", "Hi"),)))
        ...     store.erase(user="ann").traces, store.trace("r1")
        (('r1',), None)
        """
        wanted = chosen(self._project, user=user, thread=thread, older_than=older_than, everything=everything)
        erasure, row = run_erasure(self._db, wanted, dry_run=dry_run, spool=spool)
        if row is not None:
            self._caches.forget(row)
            self._rewards.forget()
            self._placed.clear()
        return erasure

    def checkpointer(self, *, allow: Iterable[type] = (), steps_only: bool = False) -> StoreCheckpointer:
        """A checkpointer for LangGraph on this store."""
        from cm2_agent.store.checkpoints import StoreCheckpointer

        return StoreCheckpointer(self._db, self._do, project=self.project, allow=allow, steps_only=steps_only)

    # Human labels

    def save_labels(self, labels: Iterable[Label]) -> LabelCounts:
        """Store labels in one transaction; a rater's later word on the same place replaces the earlier one. A label may
        speak of a trace that is not stored."""
        given = list(labels)
        with self._db.writing() as connection:
            return labelling.save(connection, self._do, given, self._project)

    def labels(self, *, rater: str | None = None) -> list[Label]:
        """The labels, by trace, item, turn and rater; those of one rater where named."""
        with self._db.reading() as connection:
            return labelling.read(connection, self._project, rater=rater)

    def labelled_tasks(self) -> dict[str, str | None]:
        """`{trace id: task id}` of the stored traces that have labels."""
        with self._db.reading() as connection:
            return labelling.tasks(connection, self._project)


def _alone(packed: Iterable[PackedRun], written: WriteResult) -> set[str]:
    """The traces that are one run without a thread, by their sealed ids. A run that goes on with one is placed by what
    it was shown, and bears another id: nothing is looked up under this one again."""
    return {
        run.trace_id
        for run in packed
        if run.run.thread is None and run.run.trace is None and written.traces[run.trace_id].runs == 1
    }
