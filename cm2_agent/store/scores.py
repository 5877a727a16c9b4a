"""Scores and verdicts of stored traces, by reward version."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store.codec import dump, dump_mapping, load, seal, sealed, unseal, unsealed
from cm2_agent.store.reader import chunks
from cm2_agent.store.schema import reward_checklists, reward_versions, scores, traces, verdicts
from cm2_agent.store.score_history import StoredScore, chain, changed, turns_of, turns_text, verdict_rows
from cm2_agent.store.statements import Row, Statements
from cm2_agent.store.trace_state import Bounded, Stale
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score

BLOCKS = 50_000
"""How many turns of scores are remembered: the next score of a trace is compared with its last."""


class KnownRewards:
    """Reward versions known to be stored, by name, the checklists that they were seen with, and the last scores of
    traces (by trace and reward version), bounded. Filled after a commit only."""

    def __init__(self) -> None:
        self.seqs: dict[str, int] = {}
        self.checklists: set[tuple[str, int]] = set()
        self.scores: dict[tuple[int, int], StoredScore] = {}
        """What one write has stored."""
        self._last: Bounded[StoredScore] = Bounded(BLOCKS)
        self._lock = threading.Lock()

    def take(self, trace: int, reward: int) -> StoredScore | None:
        """The last score of a trace, which is then the caller's."""
        with self._lock:
            return self._last.pop(f"{trace}:{reward}")

    def forget(self) -> None:
        """Traces were erased, and their scores with them."""
        with self._lock:
            self._last.clear()

    def learn(self, other: KnownRewards, growing: Collection[int] = ()) -> None:
        """Take note of what a committed write has stored; of the scores, those of traces (by row) that may go on."""
        with self._lock:
            self.seqs.update(other.seqs)
            self.checklists.update(other.checklists)
            for (trace, reward), score in other.scores.items():
                if trace in growing:
                    self._last.put(f"{trace}:{reward}", score, len(score.turns) + 1)


class ScoreWriter:
    """Writes scores: one of the same trace, reward version and number of runs is replaced, verdicts and all."""

    def __init__(self, statements: Statements, known: KnownRewards) -> None:
        self._do = statements
        self._known = known

    def write(
        self,
        target: Any,
        given: Iterable[Score],
        trace_seqs: Mapping[str, int],
        learned: KnownRewards,
        loaded: Mapping[tuple[int, int], list[StoredScore]] | None = None,
    ) -> None:
        """`trace_seqs` holds the `seq` of every trace, each of which is locked. Raises StoreError on numbers that are
        not finite, and Stale where the trace has scores that are not known; `load` then reads them."""
        rows: list[Row] = []
        for score in sorted(given, key=lambda score: (score.reward_version, score.trace_id)):
            where = f"the score of trace {score.trace_id!r}"
            trace = trace_seqs[score.trace_id]
            reward = self.register(target, score.reward_version, score.checklist, learned)
            chain = None if loaded is None else loaded.get((trace, reward))
            if chain is None:
                last, own = self._going_on(target, trace, reward, score, learned)
            else:
                last, own = None, _after(chain, score)
            _require_finite(score, own, where)
            stored = time.time_ns()
            row = (
                *(trace, reward, score.reward, sealed(score.null_reason), sealed(score.checklist), score.runs),
                turns_text(score.turns, own, where),
                dump_mapping(score.components, where),
                dump(dict(score.usage), where) if score.usage else None,
                *(stored, score.lower, score.upper),
            )
            seq = self._do.score.one(target, row)
            assert seq is not None
            made = StoredScore(seq=seq, runs=score.runs, stored=stored, turns=score.turns, own=own)
            if chain is not None or (last is not None and last.runs == score.runs):
                self._do.no_verdicts.many(target, [(seq,)])
            rows += verdict_rows(seq, score.turns, own, where)
            if chain is not None:
                rows += self._insert(target, chain, made, where)
                made = chain[-1]
            learned.scores[trace, reward] = made
        self._do.verdict.many(target, rows)

    def _going_on(
        self, target: Any, trace: int, reward: int, score: Score, learned: KnownRewards
    ) -> tuple[StoredScore | None, frozenset[int] | None]:
        """The trace's last score, and which blocks the new one stores. Raises Stale where that score is not known, or
        saw more."""
        latest = self._do.latest_score.row(target, (trace, reward))
        if latest is None:
            return None, None
        last = learned.scores.get((trace, reward)) or self._known.take(trace, reward)
        if last is None or (last.runs, last.stored) != tuple(latest) or last.runs > score.runs:
            raise Stale
        own = changed(last.turns, score.turns)
        if last.runs == score.runs:  # it is replaced: what it stored, the new one stores
            own = None if own is None or last.own is None else own | {one for one in last.own if one < score.length}
        return last, own

    def _insert(self, target: Any, chain: list[StoredScore], made: StoredScore, where: str) -> list[Row]:
        """Put a score into its chain; returns the rows of what the one after it then stores itself."""
        chain[:] = sorted([*(one for one in chain if one.runs != made.runs), made], key=lambda one: one.runs)
        place = chain.index(made) + 1
        if place == len(chain) or chain[place].own is None:
            return []
        after = chain[place] = replace(chain[place], own=changed(made.turns, chain[place].turns), stored=time.time_ns())
        self._do.score_turns.many(target, [(turns_text(after.turns, after.own, where), after.stored, after.seq)])
        self._do.no_verdicts.many(target, [(after.seq,)])
        return verdict_rows(after.seq, after.turns, after.own, where)

    def load(
        self, connection: Connection, given: Iterable[Score], trace_seqs: Mapping[str, int]
    ) -> dict[tuple[int, int], list[StoredScore]]:
        """The scores that the given ones go on from, or come between."""
        found: dict[tuple[int, int], list[StoredScore]] = {}
        for trace_id, version in sorted({(score.trace_id, score.reward_version) for score in given}):
            known = self._do.known_reward.row(connection, (seal(version),))
            if known is not None:
                pair = trace_seqs[trace_id], int(known[0])
                found[pair] = chain(connection, *pair)
        return found

    def register(
        self, target: Any, version: str, checklist: str | None, learned: KnownRewards, settings: JSON = None
    ) -> int:
        """The `seq` of a reward version, registered where it is new. Raises ConflictError where it is stored with other
        settings."""
        seq = self._known.seqs.get(version) or learned.seqs.get(version)
        if seq is None or settings is not None:
            text = None if settings is None else dump_mapping(settings, f"the settings of reward {version!r}")
            self._do.reward_version.many(target, [(seal(version), text)])
            seq, stored = self._do.known_reward.row(target, (seal(version),))
            learned.seqs[version] = seq
            if text is not None and stored is None:
                self._do.reward_settings.many(target, [(text, seq)])
            elif text is not None and stored != text:
                raise ConflictError(
                    f"reward version {version!r} is stored with other settings; expected the same ones, or another"
                    f" version's name (stored: {str(unseal(stored))[:120]})"
                )
        pair = None if checklist is None else (checklist, seq)
        if pair is not None and pair not in self._known.checklists and pair not in learned.checklists:
            self._do.reward_checklist.many(target, [(seal(pair[0]), seq)])
            learned.checklists.add(pair)
        return int(seq)


def finite(value: float | None, where: str) -> float | None:
    """The number, where it is one. Raises StoreError on NaN and infinities, which some databases would silently turn
    into NULL."""
    if value is None:
        return None
    if not math.isfinite(value):
        raise StoreError(f"{where} holds {value}; expected a finite number, or None where nobody could tell")
    return float(value)


def versions(connection: Connection, project: str, checklist: str | None = None) -> list[str]:
    """The reward versions, last registered first; those of a checklist (by its hash) where one is named. Not those
    under which only other projects have scores."""
    query = select(reward_versions.c.version, reward_versions.c.seq).order_by(reward_versions.c.seq.desc())
    if checklist is not None:
        query = query.join(reward_checklists, reward_checklists.c.reward == reward_versions.c.seq)
        query = query.where(reward_checklists.c.checklist == seal(checklist))
    found = connection.execute(query).all()
    sides = (traces.c.project < project, traces.c.project > project)  # two look-ups in an index
    if any(connection.execute(select(traces.c.seq).where(side).limit(1)).first() is not None for side in sides):
        under = select(scores.c.trace).join(traces, traces.c.seq == scores.c.trace)
        found = [
            row
            for row in found
            if connection.execute(under.where(scores.c.reward == row.seq, traces.c.project == project).limit(1)).first()
            or not connection.execute(under.where(scores.c.reward == row.seq).limit(1)).first()
        ]
    return [unseal(row.version) for row in found]


def current() -> ColumnElement[bool]:
    """A condition on `scores`: of its trace's scores under its reward version it saw most runs."""
    later = scores.alias("later")
    same = (later.c.trace == scores.c.trace, later.c.reward == scores.c.reward)
    return ~select(later.c.seq).where(*same, later.c.runs > scores.c.runs).exists()


def current_verdict() -> ColumnElement[bool]:
    """A condition on `verdicts`: no later score of the trace under the reward version stores its turn."""
    own, later, newer = scores.alias("own"), scores.alias("later"), verdicts.alias("newer")
    superseded = (
        select(later.c.seq)
        .select_from(own)
        .join(later, (later.c.trace == own.c.trace) & (later.c.reward == own.c.reward) & (later.c.runs > own.c.runs))
        .join(newer, (newer.c.score == later.c.seq) & (newer.c.block == verdicts.c.block))
        .where(own.c.seq == verdicts.c.score)
    )
    return ~superseded.correlate(verdicts).exists()


def count_verdicts(connection: Connection) -> int:
    """How many verdicts meet `current_verdict`: of each block those that the newest score stores, by one pass."""
    own = select(verdicts.c.score, verdicts.c.block, func.count().label("n"))
    stored = own.group_by(verdicts.c.score, verdicts.c.block).subquery("stored")
    newest = func.max(scores.c.runs).over(partition_by=(scores.c.trace, scores.c.reward, stored.c.block))
    blocks = select(stored.c.n, scores.c.runs, newest.label("newest")).join(scores, scores.c.seq == stored.c.score)
    found = blocks.subquery("blocks")
    return int(connection.scalar(select(func.sum(found.c.n)).where(found.c.runs == found.c.newest)) or 0)


def usage(connection: Connection) -> dict[str, dict[str, JSON]]:
    """What judging took, summed by reward version: the numbers of `Score.usage`, over `traces` scores. A sum is None
    where one of its numbers is not known."""
    query = select(reward_versions.c.version, scores.c.usage, func.count())
    query = query.join(scores, scores.c.reward == reward_versions.c.seq)
    query = query.where(scores.c.usage.is_not(None), current())
    query = query.group_by(reward_versions.c.seq, reward_versions.c.version, scores.c.usage)
    totals: dict[str, dict[str, JSON]] = {}
    for version, used, count in connection.execute(query.order_by(reward_versions.c.seq, func.min(scores.c.seq))):
        total = totals.setdefault(unseal(version), {"traces": 0})
        total["traces"] += count
        for name, value in load(used).items():
            known = total.get(name, 0)
            if value is None or isinstance(value, int | float):
                total[name] = None if value is None or known is None else known + value * count
    return totals


def usage_of(connection: Connection, project: str, reward: str, ids: Sequence[str]) -> dict[str, dict[str, JSON]]:
    """What judging these traces took under a reward version, by trace id; those without usage are left out."""
    version = connection.scalar(select(reward_versions.c.seq).where(reward_versions.c.version == seal(reward)))
    if version is None:
        return {}
    found: dict[str, dict[str, JSON]] = {}
    for chunk in chunks(ids):
        query = select(traces.c.id, scores.c.usage).join(traces, traces.c.seq == scores.c.trace)
        query = query.where(traces.c.project == project, traces.c.id.in_([seal(id) for id in chunk]))
        query = query.where(scores.c.reward == version, scores.c.usage.is_not(None), current())
        found.update({unseal(id): load(text) for id, text in connection.execute(query)})
    return found


def newest(connection: Connection, project: str, trace_id: str, reward: str | None) -> Score | None:
    """The trace's current score under a reward version, or under the last registered one that it has a score under."""
    found = _newest(connection, project, trace_id, reward)
    return None if found is None else next(iter(read(connection, [found[2]]).values()))


def _newest(connection: Connection, project: str, trace_id: str, reward: str | None) -> tuple[int, int, int] | None:
    """The rows of the trace, of the reward version and of its current score under it."""
    query = select(scores.c.trace, scores.c.reward, scores.c.seq).join(traces, traces.c.seq == scores.c.trace)
    query = query.where(traces.c.project == project, traces.c.id == seal(trace_id))
    query = query.join(reward_versions, reward_versions.c.seq == scores.c.reward)
    if reward is not None:
        query = query.where(reward_versions.c.version == seal(reward))
    row = connection.execute(query.order_by(reward_versions.c.seq.desc(), scores.c.runs.desc()).limit(1)).first()
    return None if row is None else (row.trace, row.reward, row.seq)


def under(reward: str | None) -> ColumnElement[bool]:
    """A condition on `scores`: they are of this reward version, or (None) of the last registered one that their trace
    has a score under."""
    if reward is not None:
        version = select(reward_versions.c.seq).where(reward_versions.c.version == seal(reward))
        return scores.c.reward == version.scalar_subquery()
    other = scores.alias("other")
    newest = select(func.max(other.c.reward)).where(other.c.trace == scores.c.trace)
    return scores.c.reward == newest.scalar_subquery()


def of_traces(connection: Connection, seqs: Sequence[int], reward: str | None) -> dict[int, Score]:
    """The current scores of these rows of traces, by the row, `under` a reward version."""
    found: dict[int, Score] = {}
    for chunk in chunks(seqs):
        query = select(scores.c.seq).where(scores.c.trace.in_(chunk), under(reward), current())
        found.update(read(connection, list(connection.scalars(query))))
    return found


def read(connection: Connection, seqs: Sequence[int]) -> dict[int, Score]:
    """The scores of these rows, by the `seq` of their trace."""
    made: dict[int, Score] = {}
    for chunk in chunks(seqs):
        made.update({row.trace: score for row, score in _read(connection, scores.c.seq.in_(chunk))})
    return made


def history(connection: Connection, project: str, trace_id: str, reward: str | None) -> list[Score]:
    """The scores of a trace under a reward version, or under the last registered one that it has a score under: those
    that saw fewest runs first."""
    version = _newest(connection, project, trace_id, reward)
    if version is None:
        return []
    return [score for _, score in _read(connection, (scores.c.trace == version[0]) & (scores.c.reward == version[1]))]


def _read(connection: Connection, wanted: ColumnElement[bool]) -> Iterator[tuple[Any, Score]]:
    """The scores of these rows by the runs that they saw, each with its row."""
    query = select(scores, traces.c.id, reward_versions.c.version).join(traces, traces.c.seq == scores.c.trace)
    query = query.join(reward_versions, reward_versions.c.seq == scores.c.reward)
    rows = connection.execute(query.where(wanted).order_by(scores.c.runs, scores.c.seq)).all()
    turns = turns_of(connection, rows)
    for row in rows:
        yield (
            row,
            Score(
                trace_id=unseal(row.id),
                reward_version=unseal(row.version),
                reward=row.value,
                checklist=unsealed(row.checklist),
                turns=turns[row.seq],
                runs=row.runs,
                null_reason=unsealed(row.null_reason),
                components=load(row.components),
                usage={} if row.usage is None else load(row.usage),
                lower=row.lower,
                upper=row.upper,
            ),
        )


def _after(chain: Sequence[StoredScore], score: Score) -> frozenset[int] | None:
    """Which blocks a score stores within its chain."""
    before = [one for one in chain if one.runs < score.runs]
    return changed(before[-1].turns, score.turns) if before else None


def _require_finite(score: Score, own: frozenset[int] | None, where: str) -> None:
    """The reward and the blocks that are written, all where `own` is None; the others are stored already."""
    for reward in (score.reward, score.lower, score.upper):
        finite(reward, where)
    for block, turn in enumerate(score.turns):
        if own is None or block in own:
            for verdict in turn.verdicts:
                finite(verdict.weight, where)
                finite(verdict.payment, where)
