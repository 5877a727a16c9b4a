"""The items of a turn made ready to score, and what is known of them in one trace (docs/method.md §2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cm2_agent.types.checklist_item import Item
from cm2_agent.types.not_applicable import REASON as NOT_APPLICABLE
from cm2_agent.types.score import TurnScore
from cm2_agent.types.trace import Trace

from .applicability import PENDING, PreparedItem, apply_conditions
from .check_limits import DISABLED
from .checks import Resolved, run_check
from .data_checks import DataCheck
from .payments import REST, Links, only_open
from .shaping import ItemColumn, Share, normalised


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredTurn:
    """The items of one turn, or of the closing block (`turn` None), with what scoring needs of them.

    The first `size` of `items` are the items themselves, which weigh and have `links`. Behind them, with weight 0,
    stands what decides whether one of them applies, asked like any other item: `conditions` has its index by the
    item's."""

    turn: int | None
    size: int
    items: tuple[Item, ...]
    checks: tuple[Resolved | None, ...]
    weights: tuple[float, ...]
    links: Links
    conditions: Mapping[int, int]

    @classmethod
    def of(cls, turn: int | None, prepared: Sequence[PreparedItem], *, known: bool = False) -> ScoredTurn:
        """The turn of these items; one that is not there is waited for by none. `known`: they are those that apply by
        the task's own messages, so nothing more is asked about these."""
        items = [one.item for one in prepared]
        place = {item.id: at for at, item in enumerate(items)}
        asked = {
            at: one.condition
            for at, one in enumerate(prepared)
            if one.condition is not None and not (known and one.by_user)
        }
        parents = [[name for name in item.parents if name in place] for item in items]
        return cls(
            turn=turn,
            size=len(items),
            items=(*items, *(one.item for one in asked.values())),
            checks=tuple(one.check for one in (*prepared, *asked.values())),
            weights=(*normalised([item.weight for item in items]), *(0.0 for _ in asked)),
            links=Links(
                deps=tuple(tuple(place[name] for name in names) for names in parents),
                soft=tuple(
                    tuple(item.softness.get(name, 0.0) for name in names)
                    for item, names in zip(items, parents, strict=True)
                ),
                any_of=tuple(tuple(place[name] for name in item.any_of if name in place) for item in items),
            ),
            conditions={at: len(items) + number for number, at in enumerate(asked)},
        )

    def strict(self) -> ScoredTurn:
        """The turn with the strict items and what they hang on alone (weights do not matter to a gate)."""
        links = self.links
        wanted = {at for at in range(self.size) if self.items[at].required_for_next_turn}
        waiting = list(wanted)
        while waiting:
            at = waiting.pop()
            for other in (*links.deps[at], *links.any_of[at]):
                if other not in wanted:
                    wanted.add(other)
                    waiting.append(other)
        selected = sorted(wanted)
        conditions = [self.conditions[at] for at in selected if at in self.conditions]
        every = [*selected, *conditions]
        place = {at: number for number, at in enumerate(every)}
        return ScoredTurn(
            turn=self.turn,
            size=len(selected),
            items=tuple(self.items[at] for at in every),
            checks=tuple(self.checks[at] for at in every),
            weights=tuple(self.weights[at] for at in every),
            links=Links(
                deps=tuple(tuple(place[parent] for parent in links.deps[at]) for at in selected),
                soft=tuple(links.soft[at] for at in selected),
                any_of=tuple(tuple(place[child] for child in links.any_of[at]) for at in selected),
            ),
            conditions={place[at]: place[self.conditions[at]] for at in selected if at in self.conditions},
        )

    def check(self, trace: Trace, *, cut: str | None = None, live: bool = False) -> CheckedTurn:
        """Run the checks that were written as data on the turn, which the trace must have reached; functions are still
        to be asked. `cut` says why it ended early: hold and avoid items are false then. `live`: of a trace without a
        task, in which an item that does not apply is left out."""
        steps = trace.scope(self.turn).count
        columns: list[ItemColumn | None] = []
        for at, (item, check) in enumerate(zip(self.items, self.checks, strict=True)):
            if cut is not None and item.kind != "reach" and at < self.size:
                columns.append(ItemColumn(value=False, reason=cut))
            elif not steps:
                columns.append(ItemColumn(value=False))
            elif item.any_of:
                columns.append(REST)
            elif check is None:
                columns.append(None)
            elif isinstance(check, DataCheck):
                columns.append(run_check(check, item, trace, self.turn, steps))
            else:
                columns.append(PENDING)
        apply_conditions(columns, self.items, self.conditions, steps=steps, cut=cut, live=live)
        return CheckedTurn(turn=self, steps=steps, columns=columns, cut=cut, live=live)


@dataclass(kw_only=True)
class CheckedTurn:
    """A turn of one trace whose checks have run: an item's column is PENDING while its function is still to be asked,
    None while a judge is. `score` is there where the turn was scored before and has not changed."""

    turn: ScoredTurn
    steps: int
    columns: list[ItemColumn | None] = field(default_factory=list)
    reached: bool = True
    cut: str | None = None
    live: bool = False
    score: TurnScore | None = None
    share: Share | None = None
    """What the score adds to the reward."""

    @property
    def lasts(self) -> bool:
        """Whether the score stays as it is while the turn does: no column is NULL for what may pass."""
        return self.reached and not any(map(_may_pass, self.columns))

    @property
    def asked(self) -> list[int]:
        """The places of the columns that a judge is to be asked about now; an item of which it is not known whether it
        applies is not yet."""
        waiting = {at for at, condition in self.turn.conditions.items() if self.columns[condition] is None}
        return [at for at, column in enumerate(self.columns) if column is None and at not in waiting]

    def close(self) -> None:
        """Fill the columns that need no answer any more: of items that are known not to apply, and of those that hang
        on an item which is known to be false or NULL. The functions have been asked."""
        turn = self.turn
        apply_conditions(self.columns, turn.items, turn.conditions, steps=self.steps, cut=self.cut, live=self.live)
        self.columns[: turn.size] = only_open(self.columns[: turn.size], turn.links)


def _may_pass(column: ItemColumn | None) -> bool:
    if column is None or column.value is not None or column is REST or column.reason == NOT_APPLICABLE:
        return False
    lasts = column.cause == "content" or column.reason in ("no judge", "check failed")
    return column.reason == DISABLED or not lasts


__all__ = ["CheckedTurn", "ScoredTurn"]
