"""Groups of stored rollouts: which belong together, and the groups themselves, read a few at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from sqlalchemy import Connection, func, select

from cm2_agent.errors import StoreError
from cm2_agent.store import scores as scoring
from cm2_agent.store.codec import load, seal
from cm2_agent.store.engine import Database
from cm2_agent.store.reader import Reader
from cm2_agent.store.schema import group_keys, reward_versions, scores, tasks, traces
from cm2_agent.store.tasks import name_of
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.group import Group, Rollout, backends_of
from cm2_agent.types.json_values import JSON

PORTION = 16
"""Rollouts that are read in one transaction, as long as a group has no more."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A group that was selected and not read yet: its key, and its rollouts' traces and scores by their rows."""

    key: Mapping[str, JSON]
    members: tuple[tuple[int, int], ...]


class StoredGroups(Sequence[Group]):
    """The groups of a store that were selected, each read from the database when it is come to, a few in one
    transaction.

    `for group in groups` reads them anew each time, in the same order, and holds no more than a portion of them. Which
    rollouts belong to them was settled when they were selected: what is stored meanwhile is not among them. The store
    must be open. Raises StoreError where a rollout was erased meanwhile.

    >>> from cm2_agent import Message, Run, Score, SQLStore
    >>> with SQLStore("sqlite://") as store:
    ...     for number in range(2):
    ...         task = {"cm2.task.id": "hello", "cm2.rollout": number}
    ...         store.save_run(Run(id=f"r{number}", messages=(Message.of("user", "Hi"),), attributes=task))
    ...         store.save_score(Score(trace_id=f"r{number}", reward_version="v1", reward=number / 2))
    ...     groups = store.stream_groups()
    ...     [key["task"] for key in groups.keys], groups.rollouts, groups[0].rollouts[1].score.reward
    (['hello'], 2, 0.5)
    """

    def __init__(self, database: Database, selected: Sequence[Selected], portion: int = PORTION) -> None:
        self._db = database
        self._selected = tuple(selected)
        self._portion = portion

    @property
    def keys(self) -> tuple[Mapping[str, JSON], ...]:
        """What the rollouts of each group share (`Group.key`); nothing is read for it."""
        return tuple(one.key for one in self._selected)

    @property
    def rollouts(self) -> int:
        """How many rollouts the groups hold together."""
        return sum(len(one.members) for one in self._selected)

    def of_run(self, name: str) -> StoredGroups:
        """Those whose rollouts are of one run, by its name (`run(…, name=)`); nothing is read for it."""
        return StoredGroups(self._db, [one for one in self._selected if one.key.get("group") == name], self._portion)

    def __len__(self) -> int:
        return len(self._selected)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> StoredGroups: ...
    def __getitem__(self, index: int | slice) -> Group | StoredGroups:
        if isinstance(index, slice):
            return StoredGroups(self._db, self._selected[index], self._portion)
        return self._read([self._selected[index]])[0]

    def __iter__(self) -> Iterator[Group]:
        portion: list[Selected] = []
        for one in self._selected:
            if portion and sum(len(other.members) for other in (*portion, one)) > self._portion:
                yield from _handed_out(self._read(portion))
                portion = []
            portion.append(one)
        if portion:
            yield from _handed_out(self._read(portion))

    def __repr__(self) -> str:
        return f"<{len(self)} stored groups of {self.rollouts} rollouts>"

    def _read(self, selected: Sequence[Selected]) -> list[Group]:
        with self._db.reading() as connection:
            return read(connection, selected, url=self._db.url)


def _handed_out(groups: list[Group]) -> Iterator[Group]:
    """The groups, each let go of when the next is asked for."""
    groups.reverse()
    while groups:
        yield groups.pop()


def select_groups(
    connection: Connection,
    project: str,
    *,
    url: str,
    checklist: Checklist | None,
    reward: str | None,
    policy: str | None,
    task: str | None,
    backends: frozenset[str] | None,
    min_size: int,
    member: str | None = None,
) -> list[Selected]:
    """The groups under one reward version; with `member`, the one of the trace of this id. Raises StoreError where
    nothing was scored under it."""
    version = _version(connection, project, url, checklist, reward)
    number = connection.execute(
        select(reward_versions.c.seq).where(reward_versions.c.version == seal(version))
    ).scalar_one()
    storing = select(tasks.c.id, func.min(tasks.c.seq).label("first")).group_by(tasks.c.id).subquery()
    query = (
        select(
            *(group_keys.c.seq, group_keys.c.key, traces.c.seq, scores.c.seq, scores.c.runs),
            *(storing.c.first, traces.c.started),
        )
        .join(traces, traces.c.group_key == group_keys.c.seq)
        .join(scores, (scores.c.trace == traces.c.seq) & (scores.c.reward == number))
        .outerjoin(storing, storing.c.id == group_keys.c.task)
        .where(traces.c.project == project)
        .order_by(traces.c.rollout.is_(None), traces.c.rollout, traces.c.started, traces.c.id)
    )
    if checklist is not None:
        query = query.where(scores.c.checklist == checklist.hash)
    if policy is not None:
        query = query.where(group_keys.c.policy == seal(policy))
    if task is not None:
        query = query.where(group_keys.c.task == seal(task))
    if member is not None:
        own = select(traces.c.group_key).where(traces.c.project == project, traces.c.id == seal(member))
        query = query.where(group_keys.c.seq == own.scalar_subquery())
    members: dict[int, dict[int, tuple[int, int]]] = {}  # group → trace → its current score's runs and row
    keys: dict[int, str] = {}
    order: dict[int, tuple[bool, int, int, int]] = {}
    for group, key, trace, score, seen, stored, started in connection.execute(query):
        rollouts = members.setdefault(group, {})
        rollouts[trace] = max(rollouts.get(trace, (seen, score)), (seen, score))
        keys[group] = key
        place = (stored is None, stored or 0, started, group)
        order[group] = min(order.get(group, place), place)
    selected = sorted((group for group in members if len(members[group]) >= min_size), key=order.__getitem__)
    if backends is not None:
        answered = {group: backends_of(load(keys[group])) for group in selected}
        selected = [group for group in selected if (known := answered[group]) is not None and known <= backends]
    return [
        Selected(
            key={**load(keys[group]), "reward": version},
            members=tuple((trace, score) for trace, (_, score) in members[group].items()),
        )
        for group in selected
    ]


def read(connection: Connection, selected: Iterable[Selected], *, url: str) -> list[Group]:
    """These groups. Raises StoreError where a rollout of theirs is not stored any more."""
    selected = list(selected)
    members = [member for one in selected for member in one.members]
    found = scoring.read(connection, [score for _, score in members])
    missing = sum(trace not in found for trace, _ in members)
    if missing:
        raise StoreError(
            f"store {url}: {missing} of {len(members)} rollouts were erased since their groups were selected; ask the"
            " store for its groups again"
        )
    rows = [trace for trace, _ in members]
    made = dict(zip(rows, Reader(connection).traces(rows), strict=True))
    return [
        Group(
            key=dict(one.key),
            rollouts=tuple(Rollout(trace=made[trace], score=found[trace]) for trace, _ in one.members),
        )
        for one in selected
    ]


def _version(connection: Connection, project: str, url: str, checklist: Checklist | None, reward: str | None) -> str:
    """The reward version that is meant, which has scores. Raises StoreError."""
    versions = scoring.versions(connection, project, None if checklist is None else checklist.hash)
    if reward is not None:
        versions = [version for version in versions if version == reward]
    for version in versions:
        query = select(scores.c.seq).join(reward_versions, reward_versions.c.seq == scores.c.reward)
        query = query.join(traces, traces.c.seq == scores.c.trace)
        query = query.where(reward_versions.c.version == seal(version), traces.c.project == project)
        if checklist is not None:
            query = query.where(scores.c.checklist == checklist.hash)
        if connection.execute(query.limit(1)).first() is not None:
            return version
    wanted = "" if checklist is None else f" of {name_of(connection, checklist.hash)} (hash {checklist.hash[:12]})"
    wanted += "" if reward is None else f" under reward version {reward!r}"
    there = scoring.versions(connection, project)
    known = f"it has scores under {', '.join(there[:5])}" if there else "it has no scores at all"
    file = "CHECKLIST.yaml" if checklist is None else f"{checklist.name}.yaml"
    raise StoreError(
        f"store {url} holds no score{wanted}; {known}. Score its traces first: cm2 score {file} --store {url}"
    )
