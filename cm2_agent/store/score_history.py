"""The scores of one trace under one reward version, as it grew: each stores the blocks (turns, and the closing block)
that differ from the score before it, and is read with what it shares.

A score's `turns` are a list where it stores all its blocks, or `{"length": L, "changed": {block: turn}}`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from cm2_agent.store.codec import dump, load, seal, sealed, unseal, unsealed
from cm2_agent.store.reader import chunks
from cm2_agent.store.schema import scores, verdicts
from cm2_agent.store.statements import Row
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import TurnScore, Verdict

Turns = tuple[TurnScore, ...]


@dataclass(frozen=True, kw_only=True)
class StoredScore:
    """What later scores build on: a score's blocks, and which of them it stores itself (None: all)."""

    seq: int
    runs: int
    stored: int | None
    turns: Turns
    own: frozenset[int] | None


def changed(before: Turns, now: Turns) -> frozenset[int] | None:
    """The blocks of `now` that differ from those before; None where all do."""
    differ = [
        block
        for block, turn in enumerate(now)
        if block >= len(before) or (turn is not before[block] and turn != before[block])
    ]
    return None if len(differ) == len(now) else frozenset(differ)


def turns_text(turns: Turns, own: frozenset[int] | None, where: str) -> str:
    """The column `turns` of a score that stores these blocks."""
    if own is None:
        return dump([_head(turn) for turn in turns], where)
    return dump({"length": len(turns), "changed": {str(block): _head(turns[block]) for block in sorted(own)}}, where)


def verdict_rows(seq: int, turns: Turns, own: frozenset[int] | None, where: str) -> list[Row]:
    """The rows of `verdicts` of a score that stores these blocks."""
    return [
        (
            seq,
            block,
            position,
            turn.turn,
            seal(verdict.item),
            verdict.value,
            verdict.step,
            verdict.paid,
            float(verdict.weight),
            sealed(verdict.reason),
            verdict.cause,
            dump(list(verdict.depends_on), where),
            sealed(verdict.explanation),
            dump([dict(quote) for quote in verdict.evidence], where),
            verdict.payment,
            dump(list(verdict.soft), where) if verdict.soft else None,
        )
        for block, turn in enumerate(turns)
        if own is None or block in own
        for position, verdict in enumerate(turn.verdicts)
    ]


def turns_of(connection: Connection, rows: Sequence[Any]) -> dict[int, Turns]:
    """The blocks of these rows of `scores`, by `seq`."""
    pairs: dict[tuple[int, int], int] = {}
    by_seq = {row.seq: row for row in rows}
    for row in rows:
        if row.turns.startswith("{"):
            pairs[row.trace, row.reward] = max(row.runs, pairs.get((row.trace, row.reward), 0))
    if pairs:
        by_seq.update({row.seq: row for row in _earlier(connection, pairs)})
    chains: dict[tuple[int, int], list[Any]] = {}
    for row in by_seq.values():
        chains.setdefault((row.trace, row.reward), []).append(row)
    found: dict[int, Turns] = {}
    own = _verdicts(connection, sorted(by_seq))
    for several in chains.values():
        for row, turns in _built(sorted(several, key=lambda row: row.runs), own):
            found[row.seq] = turns
    return found


def chain(connection: Connection, trace: int, reward: int) -> list[StoredScore]:
    """All scores of a trace under a reward version, those of fewest runs first."""
    columns = (scores.c.seq, scores.c.runs, scores.c.turns, scores.c.stored)
    query = select(*columns).where(scores.c.trace == trace, scores.c.reward == reward).order_by(scores.c.runs)
    rows = connection.execute(query).all()
    own = _verdicts(connection, [row.seq for row in rows])
    return [
        StoredScore(seq=row.seq, runs=row.runs, stored=row.stored, turns=turns, own=_own_blocks(row.turns))
        for row, turns in _built(rows, own)
    ]


def _earlier(connection: Connection, pairs: Mapping[tuple[int, int], int]) -> Iterator[Any]:
    """The scores of these traces and reward versions that saw at most so many runs."""
    columns = (scores.c.seq, scores.c.trace, scores.c.reward, scores.c.runs, scores.c.turns)
    rewards = sorted({reward for _, reward in pairs})
    for chunk in chunks(sorted({trace for trace, _ in pairs})):
        query = select(*columns).where(scores.c.trace.in_(chunk), scores.c.reward.in_(rewards))
        for row in connection.execute(query):
            if row.runs <= pairs.get((row.trace, row.reward), -1):
                yield row


def _built(rows: Iterable[Any], own: Mapping[int, Mapping[int, tuple[Verdict, ...]]]) -> Iterator[tuple[Any, Turns]]:
    """Each row of a chain, those of fewest runs first, with its blocks: of each the newest up to it."""
    blocks: list[TurnScore] = []
    for row in rows:
        heads = load(row.turns)
        length = len(heads) if isinstance(heads, list) else heads["length"]
        mine = dict(enumerate(heads)) if isinstance(heads, list) else heads["changed"]
        verdicts_of = own.get(row.seq, {})
        blocks = blocks[:length] + [_NOTHING] * (length - len(blocks))
        for block, head in mine.items():
            blocks[int(block)] = TurnScore(**head, verdicts=verdicts_of.get(int(block), ()))
        yield row, tuple(blocks)


def _verdicts(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[int, tuple[Verdict, ...]]]:
    """The verdicts of these scores by block."""
    found: dict[int, dict[int, tuple[Verdict, ...]]] = {}
    order = (verdicts.c.score, verdicts.c.block, verdicts.c.position)
    for chunk in chunks(seqs):
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
                payment=row.payment,
                soft=() if row.soft is None else tuple(load(row.soft)),
            )
            blocks = found.setdefault(row.score, {})
            blocks[row.block] = (*blocks.get(row.block, ()), verdict)
    return found


def _own_blocks(text: str) -> frozenset[int] | None:
    heads = load(text)
    return None if isinstance(heads, list) else frozenset(map(int, heads["changed"]))


def _head(turn: TurnScore) -> dict[str, JSON]:
    return {"turn": turn.turn, "reached": turn.reached, "steps": turn.steps, "reward": turn.reward}


_NOTHING = TurnScore(turn=None, reached=False, steps=0, reward=None)
"""Stands for a block until its row is read: every block is stored by some score of its chain."""
