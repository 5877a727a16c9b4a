"""What each item of a turn comes to: satisfied or not after what it waits for, and the share of its weight paid.

docs/method.md §3. An item waits for others by `deps`, hard (λ = 0) or soft (0 < λ < 1), or rests on any of several
(`any_of`). With hard dependencies alone this is Eq. 2 and the rule of dependants (shaping.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from graphlib import TopologicalSorter

from cm2_agent.types.not_applicable import REASON as NOT_APPLICABLE

from .shaping import Deps, ItemColumn, apply_dependencies, paid_items

REST = ItemColumn(value=None, reason="any_of")
"""Stands in the column of an item that rests on others (`any_of`) until these are known."""
INAPPLICABLE = ItemColumn(value=None, reason=NOT_APPLICABLE)
"""The column of an item that does not apply, where nothing says what it is worth then."""
_HOPEFUL = ItemColumn(value=True, first_true_step=1)


@dataclass(frozen=True, kw_only=True)
class Links:
    """What the items of a turn have to do with each other, as indices: of each those that it waits for with their λ (0:
    hard), and those that it is any of."""

    deps: tuple[tuple[int, ...], ...]
    soft: tuple[tuple[float, ...], ...]
    any_of: tuple[tuple[int, ...], ...]

    @classmethod
    def hard(cls, deps: Deps) -> Links:
        """Hard dependencies alone."""
        return cls(
            deps=tuple(map(tuple, deps)),
            soft=tuple((0.0,) * len(parents) for parents in deps),
            any_of=((),) * len(deps),
        )

    @cached_property
    def plain(self) -> bool:
        """Whether there are hard dependencies alone."""
        return not any(self.any_of) and not any(map(any, self.soft))

    @cached_property
    def bare(self) -> bool:
        """Whether no item has to do with another."""
        return not any(self.any_of) and not any(self.deps)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The items, each after those that it hangs on."""
        graph = {at: (*self.deps[at], *self.any_of[at]) for at in range(len(self.deps))}
        return tuple(TopologicalSorter(graph).static_order())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one item comes to: its column after what it hangs on, and its payment, the share of its weight in [0, 1].
    `deps` and `soft` have what counted of what it waits for: one that does not apply and is paid all the same holds
    nobody up."""

    column: ItemColumn
    payment: float
    deps: tuple[int, ...] = ()
    soft: tuple[float, ...] = ()

    @property
    def applies(self) -> bool:
        return self.column.reason != NOT_APPLICABLE

    @property
    def pending(self) -> bool:
        """Whether nobody could tell, for a reason that the policy did not cause."""
        return self.column.value is None and self.applies and self.column.cause != "content"


def settle(columns: Sequence[ItemColumn], links: Links, *, hopeful: bool = False) -> list[Outcome]:
    """The outcomes of a turn's items. With `hopeful`, an item that rests on others counts them where they are
    satisfied, paid or not."""
    if links.plain and all(column.reason != NOT_APPLICABLE for column in columns):
        after = apply_dependencies(columns, links.deps)
        paid = paid_items([column.first_true_step for column in after], links.deps)
        return [
            Outcome(column=column, payment=float(one), deps=deps, soft=soft)
            for column, one, deps, soft in zip(after, paid, links.deps, links.soft, strict=True)
        ]
    turn = _Turn(columns, links, hopeful)
    for at in links.order:
        turn.settle(at)
    return [turn.outcomes[at] for at in range(len(columns))]


def backfilled(columns: Sequence[ItemColumn], links: Links, steps: int) -> list[list[float]]:
    """Eq. 3 with soft dependencies, rb (S, C): for each step from which on an item could still be earned, and was, what
    it would have been paid there."""
    turn = _Turn(columns, links, hopeful=False)
    for at in links.order:
        turn.settle(at)
    return [[turn.worth_at(at, step) for at in range(len(columns))] for step in range(1, steps + 1)]


def only_open(columns: Sequence[ItemColumn | None], links: Links) -> list[ItemColumn | None]:
    """The columns with those alone left open (None) that hang on no item already known to be false or NULL: no answer
    to the others would count."""
    if None not in columns:
        return list(columns)
    if links.bare:
        return list(columns)
    best = [_HOPEFUL if column is None else column for column in columns]
    if links.plain and all(column.reason != NOT_APPLICABLE for column in best):
        after = apply_dependencies(best, links.deps)
    else:
        after = [outcome.column for outcome in settle(best, links, hopeful=True)]
    return [
        known if column is None and not known.value else column for column, known in zip(columns, after, strict=True)
    ]


class _Turn:
    """The items of a turn on their way to their outcomes.

    `levels` are the steps at which an item came to be worth something, with what it is worth then to those that wait
    for it: its own soft dependencies, and those of what it waits for or rests on. `met` says whether its own hard ones
    were satisfied in time (Eq. 2)."""

    def __init__(self, columns: Sequence[ItemColumn], links: Links, hopeful: bool) -> None:
        self._columns, self._links, self._hopeful = columns, links, hopeful
        self.outcomes: dict[int, Outcome] = {}
        self._levels: list[list[tuple[int, float]]] = [[] for _ in columns]
        self._met = [False] * len(columns)

    def settle(self, at: int) -> None:
        column = self._columns[at]
        if column.reason == NOT_APPLICABLE:
            self.outcomes[at] = Outcome(column=column, payment=float(column.value or 0))
            self._met[at] = True
            self._levels[at] = [(column.first_true_step, 1.0)] if column.first_true_step is not None else []
            return
        edges = [
            (parent, soft)
            for parent, soft in zip(self._links.deps[at], self._links.soft[at], strict=True)
            if self.outcomes[parent].applies or not self.outcomes[parent].column.value
        ]
        rests = column is REST
        column = self._after(self._any_of(at) if rests else column, edges)
        if column.value:
            events = self._paid(at) if rests else [(column.first_true_step or 0, 1.0)]
            in_time = [event for event in events if self._in_time(edges, event[0])]
            self._met[at] = bool(in_time)
            self._levels[at] = [(step, worth * self._share(edges, step)) for step, worth in in_time or events]
            if in_time:
                column = replace(column, first_true_step=min(step for step, _ in in_time))
        self.outcomes[at] = Outcome(
            column=column,
            payment=max((amount for _, amount in self._levels[at]), default=0.0) if self._met[at] else 0.0,
            deps=tuple(parent for parent, _ in edges),
            soft=tuple(soft for _, soft in edges),
        )

    def _paid(self, at: int) -> list[tuple[int, float]]:
        """The steps at which items that this one rests on were paid, with what they were paid."""
        children = self._links.any_of[at]
        return [level for child in children if self._met[child] for level in self._levels[child] if level[1] > 0]

    def _in_time(self, edges: Sequence[tuple[int, float]], step: int) -> bool:
        """Whether the hard prerequisites were satisfied before the step."""
        return all(self._flip(parent) < step for parent, soft in edges if not soft)

    def worth_at(self, at: int, step: int) -> float:
        """What a settled item would be paid if it turned true in this step, 0 once it has, and where it never does."""
        outcome = self.outcomes[at]
        edges = list(zip(outcome.deps, outcome.soft, strict=True))
        if not step <= self._flip(at) < math.inf or not self._in_time(edges, step):
            return 0.0
        best = max((worth for _, worth in self._paid(at)), default=0.0) if self._columns[at] is REST else 1.0
        return best * self._share(edges, step)

    def _any_of(self, at: int) -> ItemColumn:
        """True where one of them is paid, from the earliest on; else pending, where one is; else NULL, where one is;
        else false."""
        children = [self.outcomes[child] for child in self._links.any_of[at]]
        paid = [one.column for one in children if one.column.value and (self._hopeful or one.payment > 0)]
        steps = [column.first_true_step for column in paid if column.first_true_step is not None]
        if steps:
            return ItemColumn(value=True, first_true_step=min(steps))
        unknown = [one.column for one in children if one.column.value is None and one.applies]
        if unknown:
            pending = [column for column in unknown if column.cause != "content"]
            return ItemColumn(value=None, reason=REST.reason, cause=(pending or unknown)[0].cause)
        silent = children and all(one.column.value is None for one in children)
        return INAPPLICABLE if silent else ItemColumn(value=False)

    def _after(self, column: ItemColumn, edges: Sequence[tuple[int, float]]) -> ItemColumn:
        """The rule of dependants (docs/method.md §4): false where a hard prerequisite is, else NULL where one is, else
        not to be applied where one is not; else NULL where a soft one is pending, since the payment is not known."""
        hard = [self.outcomes[parent].column for parent, soft in edges if not soft]
        if any(parent.value is False for parent in hard):
            return ItemColumn(value=False, reason="dependency")
        unknown = [parent for parent in hard if parent.value is None]
        null = next((parent for parent in unknown if parent.reason != NOT_APPLICABLE), None)
        if null is not None:
            return ItemColumn(value=None, reason="dependency", cause=null.cause)
        if unknown:
            return INAPPLICABLE
        if column.value:
            waiting = [self.outcomes[parent] for parent, soft in edges if soft]
            if any(one.pending for one in waiting):
                return ItemColumn(value=None, reason="dependency", cause="infrastructure")
        return column if column.value or column.first_true_step is None else replace(column, first_true_step=None)

    def _share(self, edges: Sequence[tuple[int, float]], flip: int) -> float:
        """Π over the prerequisites: q + (1 − q)λ of a soft one, q what it was paid before the step; of a hard one what
        is left of its own."""
        factors = []
        for parent, soft in edges:
            before = [amount for step, amount in self._levels[parent] if step < flip]
            if soft:
                worth = max(before, default=0.0) if self._met[parent] else 0.0
                factors.append(worth + (1.0 - worth) * soft)
            else:  # one that came too late is `met`'s business: what waits for this item asks for satisfaction alone
                factors.append(max(before or [amount for _, amount in self._levels[parent]], default=1.0))
        return math.prod(factors)

    def _flip(self, at: int) -> float:
        step = self.outcomes[at].column.first_true_step
        return math.inf if step is None else step


__all__ = ["INAPPLICABLE", "REST", "Links", "Outcome", "only_open", "settle"]
