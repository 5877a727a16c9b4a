"""The scored traces of a project as reports count them: narrow columns, page by page, and what the database counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Subquery, and_, case, func, or_, select

from cm2_agent.store import queries
from cm2_agent.store import scores as scoring
from cm2_agent.store.codec import SEALED, like_pattern, load, seal, unseal, unsealed
from cm2_agent.store.engine import Database
from cm2_agent.store.reader import Reader, chunks
from cm2_agent.store.schema import model_calls, reward_versions, runs, scores, traces, verdicts
from cm2_agent.store.selection import Selection, conditions
from cm2_agent.store.trace_filter import TraceFilter
from cm2_agent.types.json_values import JSON, json_text
from cm2_agent.types.run_attributes import CUT
from cm2_agent.types.score import Score
from cm2_agent.types.scored_facts import BlockFact, ScoredFacts, VerdictFact, quoted_step
from cm2_agent.types.trace import Trace

PORTION = 500
"""Traces read in one transaction: as many keys as one IN (…) holds."""


class ScoredRows:
    """The traces of a project with a score under one reward version, in the order of `SQLStore.traces`; each iteration
    reads them anew. The store must stay open.

    >>> from cm2_agent import Message, Run, Score, SQLStore
    >>> with SQLStore("sqlite://") as store:
    ...     store.save_run(Run(id="r1", messages=(Message.of("user", "Hi"),)))
    ...     store.save_score(Score(trace_id="r1", reward_version="v1", reward=0.5))
    ...     [(one.trace, one.reward) for one in store.scored_rows(reward="v1")]
    [('r1', 0.5)]
    """

    def __init__(self, database: Database, project: str, reward: str, where: TraceFilter | None = None) -> None:
        self._db = database
        self.reward = reward
        self._wanted = Selection(project=project, filters=() if where is None else (where,), reward=reward)

    def __iter__(self) -> Iterator[ScoredFacts]:
        version = self._version()
        for seqs in self._pages():
            with self._db.reading() as connection:
                page = _facts(connection, seqs, version)
            yield from page

    def call_usage(self) -> Iterator[tuple[Mapping[str, JSON], int]]:
        """What the agents' model calls used, as recorded, with the number of calls that used just that."""
        usage = model_calls.c.usage
        for text, count in self._all(lambda meant: _calls(meant, usage, func.count()).group_by(usage)):
            yield load(text), count

    def cuts(self) -> dict[str | None, Counter[str]]:
        """Of each policy's dialogues, how many a limit, the model's context or a crash cut, by which."""
        spelled = like_pattern(json_text(CUT) + ":")
        holding = or_(runs.c.attributes.like(spelled, escape="!"), runs.c.attributes.like(f"{SEALED}%"))
        after = runs.alias("after")
        later = or_(after.c.started > runs.c.started, and_(after.c.started == runs.c.started, after.c.seq > runs.c.seq))
        last = ~select(after.c.seq).where(after.c.trace == runs.c.trace, later).exists()
        found: dict[str | None, Counter[str]] = {}
        for policy, text in self._all(
            lambda meant: (
                select(meant.c.policy, runs.c.attributes).join(runs, runs.c.trace == meant.c.seq).where(holding, last)
            )
        ):
            cut = load(text).get(CUT)
            if cut is not None:
                found.setdefault(unsealed(policy), Counter())[str(cut)] += 1
        return found

    def policies(self) -> set[str | None]:
        """The versions of the policies that wrote a step, with None where a dialogue names none."""
        known = {unsealed(row[0]) for row in self._all(lambda meant: select(meant.c.policy).group_by(meant.c.policy))}
        if None not in known:
            return known
        known.discard(None)  # of several policies, or of none that is known
        written, version = model_calls.c.message.is_not(None), model_calls.c.model_version
        known |= {
            unsealed(row[0])
            for row in self._all(
                lambda meant: _calls(meant, version).where(meant.c.policy.is_(None), written).group_by(version)
            )
        }
        own = select(model_calls.c.run).join(runs, runs.c.seq == model_calls.c.run).where(written)
        return known | {
            None
            for _ in self._all(
                lambda meant: (
                    select(meant.c.seq)
                    .where(meant.c.policy.is_(None), ~own.where(runs.c.trace == meant.c.seq).exists())
                    .limit(1)
                )
            )
        }

    def pairs(self, ids: Sequence[str]) -> list[tuple[Trace, Score]]:
        """These traces and their scores as a whole, in the order given; what was erased meanwhile is left out."""
        found: dict[str, tuple[Trace, Score]] = {}
        with self._db.reading() as connection:
            rows = [cursor[2] for cursor in queries.cursors(connection, self._wanted.project, ids)]
            worth = scoring.of_traces(connection, rows, self.reward)
            for row, trace in zip(rows, Reader(connection).traces(rows), strict=True):
                if row in worth:
                    found[trace.id] = (trace, worth[row])
        return [found[id] for id in ids if id in found]

    def _version(self) -> int:
        with self._db.reading() as connection:
            query = select(reward_versions.c.seq).where(reward_versions.c.version == seal(self.reward))
            return int(connection.scalar(query) or 0)

    def _pages(self) -> Iterator[list[int]]:
        return queries.pages(self._db, self._wanted, size=PORTION)

    def _all(self, query: Callable[[Subquery], Any]) -> Iterator[Any]:
        """The rows of a query on the traces that are meant (their `seq` and `policy`); its groups may come in parts,
        where the database alone cannot decide which traces those are."""
        wheres: Iterator[list[ColumnElement[bool]]] = (
            iter([conditions(self._wanted)])
            if self._wanted.exact
            else ([traces.c.seq.in_(seqs)] for seqs in self._pages() if seqs)
        )
        for where in wheres:
            meant = select(traces.c.seq, traces.c.policy).where(*where).subquery("meant")
            with self._db.reading() as connection:
                yield from connection.execution_options(yield_per=PORTION).execute(query(meant))


def _calls(meant: Subquery, *columns: Any) -> Any:
    """These columns of the traces' model calls."""
    found = select(*columns).select_from(meant).join(runs, runs.c.trace == meant.c.seq)
    return found.join(model_calls, model_calls.c.run == runs.c.seq)


def _facts(connection: Connection, seqs: Sequence[int], version: int) -> list[ScoredFacts]:
    """The scored ones of these rows of traces, in their order."""
    run = connection.execute
    columns = (traces.c.seq, traces.c.id, traces.c.task, traces.c.policy, traces.c.started)
    heads = {row.seq: row for chunk in chunks(seqs) for row in run(select(*columns).where(traces.c.seq.in_(chunk)))}
    timeless = [row.seq for row in heads.values() if not row.started]
    began: dict[int, int] = {}
    for chunk in chunks(timeless):
        first = select(runs.c.trace, func.min(runs.c.started)).where(runs.c.trace.in_(chunk), runs.c.started != 0)
        began.update({row[0]: row[1] for row in run(first.group_by(runs.c.trace))})
    chains: dict[int, list[Any]] = {}
    facts = ("seq", "trace", "value", "null_reason", "checklist", "turns", "usage", "lower", "upper")
    for chunk in chunks(seqs):
        query = select(*(scores.c[name] for name in facts)).where(scores.c.trace.in_(chunk), scores.c.reward == version)
        for row in run(query.order_by(scores.c.trace, scores.c.runs)):
            chains.setdefault(row.trace, []).append(row)
    blocks = {trace: _blocks(rows) for trace, rows in chains.items()}
    _fill(connection, blocks)
    return [
        ScoredFacts(
            trace=unseal(heads[seq].id),
            task=unsealed(heads[seq].task),
            policy=unsealed(heads[seq].policy),
            started=heads[seq].started or began.get(seq, 0),
            checklist=unsealed(chains[seq][-1].checklist),
            reward=chains[seq][-1].value,
            null_reason=unsealed(chains[seq][-1].null_reason),
            lower=chains[seq][-1].lower,
            upper=chains[seq][-1].upper,
            usage={} if chains[seq][-1].usage is None else load(chains[seq][-1].usage),
            blocks=[block for _, _, block in blocks[seq]],
        )
        for seq in seqs
        if seq in chains
    ]


Stored = tuple[int, int, BlockFact]
"""The row of the score that stores a block, its number there, and the block, whose verdicts are to be filled in."""
_NOTHING: Stored = (0, 0, BlockFact(None, False, 0, []))


def _blocks(rows: Sequence[Any]) -> list[Stored]:
    """The blocks of the last of a trace's scores, given those of fewest runs first."""
    found: list[Stored] = []
    for row in rows if rows[-1].turns.startswith("{") else rows[-1:]:
        heads = load(row.turns)
        whole = isinstance(heads, list)
        length = len(heads) if whole else heads["length"]
        found = found[:length] + [_NOTHING] * (length - len(found))
        for block, head in enumerate(heads) if whole else heads["changed"].items():
            fact = BlockFact(head["turn"], head["reached"], head["steps"], [])
            found[int(block)] = (row.seq, int(block), fact)
    return found


def _fill(connection: Connection, blocks: Mapping[int, Sequence[Stored]]) -> None:
    """Read the verdicts of these blocks; the judge's words only where they may say where an item failed."""
    lists: dict[tuple[int, int], Any] = {
        (score, number): block.verdicts for several in blocks.values() for score, number, block in several
    }
    v = verdicts.c
    quotes = case((and_(v.value.is_(False), v.evidence != "[]"), v.evidence))
    order = (v.score, v.block, v.position)
    text = _Texts()
    for chunk in chunks(sorted({score for score, _ in lists})):
        query = select(v.score, v.block, v.item, v.value, v.reason, v.cause, quotes).where(v.score.in_(chunk))
        for score, block, item, value, reason, cause, evidence in connection.execute(query.order_by(*order)):
            own = lists.get((score, block))
            if own is not None:
                why = None if reason is None else text[reason]
                quoted = None if evidence is None else quoted_step(load(evidence))
                own.append(VerdictFact(text[item], value, why, cause, quoted))


class _Texts(dict[str, str]):
    """Texts by how they are stored."""

    def __missing__(self, stored: str) -> str:
        self[stored] = found = unseal(stored)
        return found


__all__ = ["ScoredRows"]
