"""Scores and verdicts of stored traces, by reward version."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, select

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store.codec import dump, dump_mapping, load, seal, sealed, unseal, unsealed
from cm2_agent.store.reader import chunks
from cm2_agent.store.schema import reward_checklists, reward_versions, scores, traces, verdicts
from cm2_agent.store.statements import Row, Statements
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score, TurnScore, Verdict


@dataclass
class KnownRewards:
    """Reward versions known to be stored, by name, and the checklists that they were seen with."""

    seqs: dict[str, int] = field(default_factory=dict)
    checklists: set[tuple[str, int]] = field(default_factory=set)

    def learn(self, other: KnownRewards) -> None:
        self.seqs.update(other.seqs)
        self.checklists.update(other.checklists)


class ScoreWriter:
    """Writes scores; a score of the same trace and reward version is replaced, verdicts and all."""

    def __init__(self, statements: Statements, known: KnownRewards) -> None:
        self._do = statements
        self._known = known

    def write(
        self, connection: Connection, given: Iterable[Score], trace_seqs: dict[str, int], learned: KnownRewards
    ) -> None:
        """`trace_seqs` holds the `seq` of every trace. Raises StoreError on numbers that are not finite."""
        rows: list[Row] = []
        for score in sorted(given, key=lambda score: (score.reward_version, score.trace_id)):
            where = f"the score of trace {score.trace_id!r}"
            reward = self.register(connection, score.reward_version, score.checklist, learned)
            turns = [
                {"turn": turn.turn, "reached": turn.reached, "steps": turn.steps, "reward": turn.reward}
                for turn in score.turns
            ]
            seq = self._do.score.one(
                connection,
                (
                    trace_seqs[score.trace_id],
                    reward,
                    finite(score.reward, where),
                    sealed(score.null_reason),
                    sealed(score.checklist),
                    score.runs,
                    dump(turns, where),
                    dump_mapping(score.components, where),
                    dump(dict(score.usage), where) if score.usage else None,
                ),
            )
            assert seq is not None
            self._do.no_verdicts.many(connection, [(seq,)])
            rows += [
                (
                    seq,
                    block,
                    position,
                    turn.turn,
                    seal(verdict.item),
                    verdict.value,
                    verdict.step,
                    verdict.paid,
                    finite(verdict.weight, where),
                    sealed(verdict.reason),
                    verdict.cause,
                    dump(list(verdict.depends_on), where),
                    sealed(verdict.explanation),
                    dump([dict(quote) for quote in verdict.evidence], where),
                )
                for block, turn in enumerate(score.turns)
                for position, verdict in enumerate(turn.verdicts)
            ]
        self._do.verdict.many(connection, rows)

    def register(
        self, connection: Connection, version: str, checklist: str | None, learned: KnownRewards, settings: JSON = None
    ) -> int:
        """The `seq` of a reward version, registered where it is new. Raises ConflictError where it is stored with other
        settings."""
        seq = self._known.seqs.get(version) or learned.seqs.get(version)
        if seq is None or settings is not None:
            text = None if settings is None else dump_mapping(settings, f"the settings of reward {version!r}")
            self._do.reward_version.many(connection, [(seal(version), text)])
            row = connection.execute(select(reward_versions).where(reward_versions.c.version == seal(version))).one()
            seq = learned.seqs[version] = int(row.seq)
            if text is not None and row.settings is None:
                connection.execute(reward_versions.update().where(reward_versions.c.seq == seq).values(settings=text))
            elif text is not None and row.settings != text:
                raise ConflictError(
                    f"reward version {version!r} is stored with other settings; expected the same ones, or another"
                    f" version's name (stored: {str(unseal(row.settings))[:120]})"
                )
        pair = None if checklist is None else (checklist, seq)
        if pair is not None and pair not in self._known.checklists and pair not in learned.checklists:
            self._do.reward_checklist.many(connection, [(seal(pair[0]), seq)])
            learned.checklists.add(pair)
        return seq


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


def usage(connection: Connection) -> dict[str, dict[str, JSON]]:
    """What judging took, summed by reward version: the numbers of `Score.usage`, over `traces` scores. A sum is None
    where one of its numbers is not known."""
    query = select(reward_versions.c.version, scores.c.usage).join(scores, scores.c.reward == reward_versions.c.seq)
    totals: dict[str, dict[str, JSON]] = {}
    for row in connection.execute(
        query.where(scores.c.usage.is_not(None), current()).order_by(reward_versions.c.seq, scores.c.seq)
    ):
        total = totals.setdefault(unseal(row.version), {"traces": 0})
        total["traces"] += 1
        for name, value in load(row.usage).items():
            known = total.get(name, 0)
            if value is None or isinstance(value, int | float):
                total[name] = None if value is None or known is None else known + value
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
    """The trace's score under a reward version, or under the last registered one that it has a score under."""
    query = select(scores.c.seq).join(traces, traces.c.seq == scores.c.trace)
    query = query.where(traces.c.project == project, traces.c.id == seal(trace_id))
    query = query.join(reward_versions, reward_versions.c.seq == scores.c.reward)
    if reward is not None:
        query = query.where(reward_versions.c.version == seal(reward))
    query = query.order_by(reward_versions.c.seq.desc(), scores.c.runs.desc()).limit(1)
    seq = connection.execute(query).scalar_one_or_none()
    return None if seq is None else next(iter(read(connection, [seq]).values()))


def of_traces(connection: Connection, seqs: Sequence[int], reward: str) -> list[Score]:
    """The scores of these rows of traces under a reward version, in their order."""
    query = select(scores.c.seq).join(reward_versions, reward_versions.c.seq == scores.c.reward)
    query = query.where(reward_versions.c.version == seal(reward), scores.c.trace.in_(seqs), current())
    found = read(connection, list(connection.scalars(query)))
    return [found[seq] for seq in seqs if seq in found]


def read(connection: Connection, seqs: Sequence[int]) -> dict[int, Score]:
    """The scores of these rows, by the `seq` of their trace."""
    made: dict[int, Score] = {}
    for chunk in chunks(seqs):
        found: dict[int, dict[int, list[Verdict]]] = {}
        order = (verdicts.c.score, verdicts.c.block, verdicts.c.position)
        for row in connection.execute(select(verdicts).where(verdicts.c.score.in_(chunk)).order_by(*order)):
            verdict = Verdict(
                item=unseal(row.item),
                value=row.value,
                weight=row.weight,
                step=row.step,
                paid=row.paid,
                depends_on=tuple(load(row.depends_on)),
                reason=unsealed(row.reason),
                cause=row.cause,
                explanation=unsealed(row.explanation),
                evidence=tuple(load(row.evidence)),
            )
            found.setdefault(row.score, {}).setdefault(row.block, []).append(verdict)
        query = select(scores, traces.c.id, reward_versions.c.version).join(traces, traces.c.seq == scores.c.trace)
        query = query.join(reward_versions, reward_versions.c.seq == scores.c.reward)
        for row in connection.execute(query.where(scores.c.seq.in_(chunk))):
            own = found.get(row.seq, {})
            turns = (
                TurnScore(**turn, verdicts=tuple(own.get(block, ()))) for block, turn in enumerate(load(row.turns))
            )
            made[row.trace] = Score(
                trace_id=unseal(row.id),
                reward_version=unseal(row.version),
                reward=row.value,
                checklist=unsealed(row.checklist),
                turns=tuple(turns),
                runs=row.runs,
                null_reason=unsealed(row.null_reason),
                components=load(row.components),
                usage={} if row.usage is None else load(row.usage),
            )
    return made
