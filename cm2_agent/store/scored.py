"""What the traces of a project are worth: the methods of `SQLStore` on scores and groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection

from cm2_agent.errors import StoreError
from cm2_agent.store import certificates, queries
from cm2_agent.store import groups as grouping
from cm2_agent.store import scores as scoring
from cm2_agent.store.catalog import Catalog
from cm2_agent.store.codec import seal
from cm2_agent.store.groups import Selected, StoredGroups
from cm2_agent.store.scored_rows import ScoredRows
from cm2_agent.store.scores import KnownRewards, ScoreWriter
from cm2_agent.store.selection import Selection
from cm2_agent.store.trace_filter import TraceFilter
from cm2_agent.store.trace_state import ATTEMPTS, Caches, Stale
from cm2_agent.types.certificate import Certificate
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score


class Scored(Catalog):
    """The methods of `SQLStore` on scores and groups."""

    _project: str
    _caches: Caches
    _rewards: KnownRewards
    _scorer: ScoreWriter

    def register_reward(
        self, version: str, checklist_hash: str | None = None, settings: Mapping[str, JSON] | None = None
    ) -> None:
        """Note a reward version, the newest from now on where it is new. Raises ConflictError where it is stored with
        other settings."""
        learned = KnownRewards()
        with self._db.writing() as connection:
            self._scorer.register(
                connection, version, checklist_hash, learned, None if settings is None else dict(settings)
            )
        self._rewards.learn(learned)

    def reward_versions(self, checklist: str | None = None) -> list[str]:
        """The reward versions, last registered first; not those under which only other projects have scores. With the
        hash of a `checklist`, those of its scores alone."""
        with self._db.reading() as connection:
            return scoring.versions(connection, self._project, checklist)

    def save_score(self, score: Score) -> None:
        """Store a score; it replaces one of the same trace and reward version that saw as many runs. Raises StoreError
        where the trace is not stored."""
        self.save_scores([score])

    def save_scores(self, scores: Iterable[Score]) -> None:
        """Several in one transaction."""
        given = list(scores)
        for attempt in range(ATTEMPTS):
            learned = KnownRewards()
            try:
                if attempt == 0:
                    with self._db.storing() as cursor:
                        rows = self._rows(cursor, given)
                        self._scorer.write(cursor, given, rows, learned)
                else:
                    with self._db.writing() as connection:
                        rows = self._rows(connection, given)
                        chains = self._scorer.load(connection, given, rows)
                        self._scorer.write(connection, given, rows, learned, chains)
            except Stale:
                continue
            self._rewards.learn(learned, {row for id, row in rows.items() if self._caches.knows(seal(id))})
            return
        raise StoreError(f"store {self.url}: other processes keep scoring these traces; save the scores again")

    def _rows(self, target: Any, given: Iterable[Score]) -> dict[str, int]:
        """The row of each score's trace, locked."""
        found: dict[str, int] = {}
        for id in sorted({score.trace_id for score in given}):
            row = self._do.trace_row.one(target, (self._project, seal(id)))
            if row is None:
                raise queries.no_trace(id, self._project, self.url)
            found[id] = row
        return found

    def score(self, trace_id: str, reward: str | None = None) -> Score | None:
        """The trace's current score under a reward version, the one that saw most of its runs: where none is named,
        under the last registered one that it has a score under."""
        with self._db.reading() as connection:
            return scoring.newest(connection, self._project, trace_id, reward)

    def score_history(self, trace_id: str, reward: str | None = None) -> list[Score]:
        """The scores that the trace has had under a reward version, as `score` chooses it: one for each number of runs
        that it had when it was scored, fewest first. The last is the current one."""
        with self._db.reading() as connection:
            return scoring.history(connection, self._project, trace_id, reward)

    def scores(self, reward: str | None = None, *, ids: Iterable[str] | None = None) -> Iterator[Score]:
        """The scores of one reward version (the newest where none is named), in the order of `traces()`; read in
        pages. With `ids` those of these traces alone, where they have one."""
        version = reward if reward is not None else next(iter(self.reward_versions()), None)
        if version is None:
            return
        for seqs in queries.pages(self._db, Selection(project=self._project, reward=version), ids):
            with self._db.reading() as connection:
                found = scoring.of_traces(connection, seqs, version)
            yield from (found[seq] for seq in seqs if seq in found)

    def scored_rows(self, where: TraceFilter | None = None, *, reward: str) -> ScoredRows:
        """The traces with a score under a reward version, those that a filter lets through, in the order of `traces()`:
        what reports count of them, without the dialogues. They are read anew each time they are gone through."""
        return ScoredRows(self._db, self._project, reward, where)

    def save_certificate(self, certificate: Certificate) -> None:
        """Store what attacks on a reward version could get paid; it replaces no earlier measurement, and counts from
        now on."""
        with self._db.writing() as connection:
            certificates.save(connection, self._do, certificate, self._project)

    def certificate(self, reward: str) -> Certificate | None:
        """The newest certificate of a reward version, None where it has none (`cm2 certify`)."""
        with self._db.reading() as connection:
            return certificates.newest(connection, self._project, reward)

    def judging(self) -> dict[str, dict[str, JSON]]:
        """What judging took, by reward version: the sums of `Score.usage`, None where a number is not known."""
        with self._db.reading() as connection:
            return scoring.usage(connection)

    def usage(self, reward: str, ids: Iterable[str]) -> dict[str, dict[str, JSON]]:
        """What judging these traces took under a reward version so far, by trace id; those that no judge was asked
        about are left out."""
        with self._db.reading() as connection:
            return scoring.usage_of(connection, self._project, reward, list(ids))

    def groups(
        self,
        *,
        checklist: Checklist | None = None,
        reward: str | None = None,
        policy: str | None = None,
        task: str | None = None,
        backends: Iterable[str] | None = None,
        min_size: int = 2,
    ) -> list[Group]:
        """The GRPO groups of one reward version: rollouts with a score under it, NULL or not, of one
        task (and its version), sampled by one policy with the same settings and the same tool backends. All of them are
        in memory; `stream_groups` reads them a few at a time.

        Groups come in the order in which their tasks were stored (tasks that were not, last), then by their first
        start; rollouts by their `cm2.rollout` attribute.

        Args:
            checklist: scores by this checklist alone.
            reward: the reward version; by default the newest that has scores (of `checklist`, where given).
            policy: rollouts of this policy version alone.
            task: rollouts of this task id alone.
            backends: groups whose tools were answered by these backends alone (`real`, `replay`, …), as far as the
                rollouts say by which.
            min_size: groups of fewer rollouts are left out.

        Raises:
            StoreError: the store holds no such score.
        """
        with self._db.reading() as connection:
            selected = self._select_groups(connection, checklist, reward, policy, task, backends, min_size)
            return grouping.read(connection, selected, url=self.url)

    def stream_groups(
        self,
        *,
        checklist: Checklist | None = None,
        reward: str | None = None,
        policy: str | None = None,
        task: str | None = None,
        backends: Iterable[str] | None = None,
        min_size: int = 2,
    ) -> StoredGroups:
        """The same groups, read a few at a time: a sequence that reads them anew each time it is gone through, so that
        a store may hold more than fits into memory. GRPO and SFT take it as it is, and `cm2 train` trains on it.

        Which rollouts belong to the groups is settled here: what is stored later is not among them. The store must stay
        open.

        Args:
            checklist: as in `groups`, like the others.
            reward: the reward version.
            policy: rollouts of this policy version alone.
            task: rollouts of this task id alone.
            backends: groups whose tools were answered by these backends alone.
            min_size: groups of fewer rollouts are left out.

        Raises:
            StoreError: the store holds no such score; while they are read, where a rollout was erased meanwhile.

        >>> from cm2_agent import Message, Run, Score, SQLStore
        >>> with SQLStore("sqlite://") as store:
        ...     for number in range(2):
        ...         task = {"cm2.task.id": "hello", "cm2.rollout": number}
        ...         store.save_run(Run(id=f"r{number}", messages=(Message.of("user", "Hi"),), attributes=task))
        ...         store.save_score(Score(trace_id=f"r{number}", reward_version="v1", reward=number / 2))
        ...     groups = store.stream_groups()
        ...     len(groups), groups.rollouts, [[one.score.reward for one in group.rollouts] for group in groups]
        (1, 2, [[0.0, 0.5]])
        """
        with self._db.reading() as connection:
            selected = self._select_groups(connection, checklist, reward, policy, task, backends, min_size)
        return StoredGroups(self._db, selected)

    def group_of(self, trace_id: str, *, reward: str | None = None) -> Group | None:
        """The group that a trace stands in under a reward version (the newest that has scores), of any size; None where
        it has none: it belongs to no task, or has no score under it.

        >>> from cm2_agent import Message, Run, Score, SQLStore
        >>> with SQLStore("sqlite://") as store:
        ...     task = {"cm2.task.id": "hello"}
        ...     store.save_run(Run(id="r", messages=(Message.of("user", "Hi"),), attributes=task))
        ...     store.save_score(Score(trace_id="r", reward_version="v1", reward=0.5))
        ...     store.group_of("r").task_id, store.group_of("other")
        ('hello', None)
        """
        with self._db.reading() as connection:
            selected = self._select_groups(connection, None, reward, None, None, None, 1, trace_id)
            found = grouping.read(connection, selected, url=self.url)
        return next((one for one in found if any(each.trace.id == trace_id for each in one.rollouts)), None)

    def _select_groups(
        self,
        connection: Connection,
        checklist: Checklist | None,
        reward: str | None,
        policy: str | None,
        task: str | None,
        backends: Iterable[str] | None,
        min_size: int,
        member: str | None = None,
    ) -> list[Selected]:
        return grouping.select_groups(
            connection,
            self._project,
            url=self.url,
            checklist=checklist,
            reward=reward,
            policy=policy,
            task=task,
            backends=None if backends is None else frozenset(backends),
            min_size=min_size,
            member=member,
        )


__all__ = ["Scored"]
