"""People's labels in the same SQL as the scores.

A label may speak of a trace that the store does not hold: people often judge elsewhere, before the recordings arrive or
without them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from cm2_agent.store.codec import seal, sealed, unseal, unsealed
from cm2_agent.store.reader import chunks
from cm2_agent.store.schema import labels, traces
from cm2_agent.store.statements import Row, Statements
from cm2_agent.types.human_labels import Label

NO_TURN = -1
"""How a label without a turn is stored: a key may not be NULL."""


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """What saving labels did: those new, those whose rater had said something else before, those that were there; and
    how many of all speak of traces that are not stored."""

    new: int
    changed: int
    same: int
    without_trace: int


def save(connection: Connection, do: Statements, given: Sequence[Label], project: str) -> LabelCounts:
    """Store labels; a rater's later word on the same place replaces the earlier one."""
    latest = {(label.trace_id, label.turn, label.item, label.rater): label for label in given}
    ids = list(dict.fromkeys(label.trace_id for label in latest.values()))
    known = {
        (label.trace_id, label.turn, label.item, label.rater): label
        for label in read(connection, project, traces_in=ids)
    }
    stored = {
        unseal(id)
        for chunk in chunks([seal(id) for id in ids])
        for id in connection.scalars(select(traces.c.id).where(traces.c.project == project, traces.c.id.in_(chunk)))
    }
    write = [label for key, label in latest.items() if known.get(key) != label]
    do.label.many(connection, [(project, *_row(label)) for label in write])
    new = sum(key not in known for key in latest)
    return LabelCounts(
        new=new,
        changed=len(write) - new,
        same=len(latest) - len(write),
        without_trace=sum(label.trace_id not in stored for label in latest.values()),
    )


def read(
    connection: Connection, project: str, *, rater: str | None = None, traces_in: Iterable[str] | None = None
) -> list[Label]:
    """Labels by trace, item, turn and rater; of one rater, or on some traces, where asked for."""
    query = select(labels).where(labels.c.project == project)
    query = query.order_by(labels.c.trace, labels.c.item, labels.c.turn, labels.c.rater)
    if rater is not None:
        query = query.where(labels.c.rater == seal(rater))
    if traces_in is None:
        rows = list(connection.execute(query))
    else:
        keys = [seal(id) for id in traces_in]
        rows = [row for chunk in chunks(keys) for row in connection.execute(query.where(labels.c.trace.in_(chunk)))]
    return [
        Label(
            trace_id=unseal(row.trace),
            item=unseal(row.item),
            rater=unseal(row.rater),
            value=row.value,
            turn=None if row.turn == NO_TURN else row.turn,
            task=unsealed(row.task),
            note=unsealed(row.note),
        )
        for row in rows
    ]


def tasks(connection: Connection, project: str) -> dict[str, str | None]:
    """`{trace id: its task}` of the stored traces that have labels."""
    query = select(traces.c.id, traces.c.task).where(
        traces.c.project == project,
        select(labels.c.trace).where(labels.c.project == project, labels.c.trace == traces.c.id).exists(),
    )
    return {unseal(row.id): unsealed(row.task) for row in connection.execute(query)}


def _row(label: Label) -> Row:
    turn = NO_TURN if label.turn is None else label.turn
    return (
        seal(label.trace_id),
        seal(label.item),
        turn,
        seal(label.rater),
        label.value,
        sealed(label.task),
        sealed(label.note),
    )
