"""Plan: a checklist made ready to score any number of traces, and what its checks find in one of them.

Checks are resolved, weights normalised and dependencies turned into indices once for all traces. Which turns of a trace
count is defined in docs/method.md, "Scope and L"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import TurnScore
from cm2_agent.types.trace import Trace

from .check_limits import DISABLED
from .checks import UNKNOWN_FAILURE, Resolved, resolve, run_check
from .data_checks import DataCheck
from .ending import Ending
from .shaping import ItemColumn, Share, normalised

PENDING = ItemColumn(value=None, reason="check failed", cause="infrastructure", explanation="the check was not asked")
"""Stands in a column until the check function has answered (function_checks.py)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredTurn:
    """The items of one turn, or of the closing block (`turn` None), with what scoring needs of them; `deps` are indices
    into `items`."""

    turn: int | None
    items: tuple[Item, ...]
    checks: tuple[Resolved | None, ...]
    weights: tuple[float, ...]
    deps: tuple[tuple[int, ...], ...]

    def strict(self) -> ScoredTurn:
        """The turn with the strict items and what they wait for alone (weights do not matter to a gate)."""
        wanted = {index for index, item in enumerate(self.items) if item.required_for_next_turn}
        waiting = list(wanted)
        while waiting:
            for parent in self.deps[waiting.pop()]:
                if parent not in wanted:
                    wanted.add(parent)
                    waiting.append(parent)
        selected = sorted(wanted)
        place = {index: at for at, index in enumerate(selected)}
        return ScoredTurn(
            turn=self.turn,
            items=tuple(self.items[index] for index in selected),
            checks=tuple(self.checks[index] for index in selected),
            weights=tuple(self.weights[index] for index in selected),
            deps=tuple(tuple(place[parent] for parent in self.deps[index]) for index in selected),
        )

    def check(self, trace: Trace, *, cut: str | None = None) -> CheckedTurn:
        """Run the checks that were written as data on the turn, which the trace must have reached; functions are still
        to be asked. `cut` says why it ended early: hold and avoid items are false then."""
        steps = trace.scope(self.turn).count
        columns: list[ItemColumn | None] = []
        for item, check in zip(self.items, self.checks, strict=True):
            if cut is not None and item.kind != "reach":
                columns.append(ItemColumn(value=False, reason=cut))
            elif not steps:
                columns.append(ItemColumn(value=False))
            elif check is None:
                columns.append(None)
            elif isinstance(check, DataCheck):
                columns.append(run_check(check, item, trace, self.turn, steps))
            else:
                columns.append(PENDING)
        return CheckedTurn(turn=self, steps=steps, columns=columns, cut=cut)


@dataclass(kw_only=True)
class CheckedTurn:
    """A turn of one trace whose checks have run: an item's column is PENDING while its function is still to be asked,
    None while a judge is. `score` is there where the turn was scored before and has not changed."""

    turn: ScoredTurn
    steps: int
    columns: list[ItemColumn | None] = field(default_factory=list)
    reached: bool = True
    cut: str | None = None
    score: TurnScore | None = None
    share: Share | None = None
    """What the score adds to the reward."""

    @property
    def lasts(self) -> bool:
        """Whether the score stays as it is while the turn does: no column is NULL for what may pass."""
        return self.reached and not any(map(_may_pass, self.columns))


def _may_pass(column: ItemColumn | None) -> bool:
    if column is None or column.value is not None:
        return False
    lasts = column.cause == "content" or column.reason in ("no judge", "check failed", UNKNOWN_FAILURE)
    return column.reason == DISABLED or not lasts


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """The scores of a dialogue's first `turns` turns, to which nothing can be added any more, and what they add to the
    reward."""

    judge: Judge | None = None
    turns: int = 0
    scores: tuple[TurnScore, ...] = ()
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CheckedTrace:
    """A trace whose checks have run: the turns that count, in order, the closing block last, without those that are
    `settled`. `ending` is the trace's."""

    plan: Plan
    ending: Ending
    settled: Settled
    turns: list[CheckedTurn]

    def remember(self, trace: Trace, judge: Judge | None) -> None:
        """Keep the scores that last with the trace's turns, for when it has grown: each turn's, and together those of
        all turns but the last, which may go on."""
        for one in self.turns:
            if one.turn.turn is not None and one.lasts:
                trace.turns[one.turn.turn].memo[one.turn] = (judge, one)
        last = self.ending.turns - 1
        if not self.plan.is_open_ended(self.ending) or last <= self.settled.turns:
            return
        more = [one for one in self.turns if one.turn.turn is not None and one.turn.turn < last]
        if all(one.lasts for one in more):
            trace.turns[last - 1].memo[self.plan] = Settled(
                judge=judge,
                turns=last,
                scores=(*self.settled.scores, *(one.score for one in more if one.score is not None)),
                shares=(*self.settled.shares, *(one.share for one in more if one.share is not None)),
            )


class Plan:
    """A checklist with its checks resolved. Raises ChecklistError where one cannot be."""

    def __init__(self, checklist: Checklist, functions: Mapping[str, CheckFunction] | None = None) -> None:
        self.checklist = checklist.bound(functions) if functions else checklist
        self._checks = {
            item.id: None if item.check is None else resolve(item.check, functions, item=item.id, kind=item.kind)
            for item in self.checklist.items
        }
        own = {item.turn for item in self.checklist.items if isinstance(item.turn, int)}
        self._turns = {turn: self._scored_turn(turn, self.checklist.of_turn(turn)) for turn in own}
        self._each = self._scored_turn(0, [item for item in self.checklist.items if item.turn == "each"])
        self._block = self._scored_turn(None, self.checklist.block)
        self._strict: dict[int, ScoredTurn | None] = {}

    @cached_property
    def judged(self) -> bool:
        """Whether any item needs a judge."""
        return any(check is None for check in self._checks.values())

    @cached_property
    def gated(self) -> bool:
        """Whether any item is strict."""
        return any(item.required_for_next_turn for item in self.checklist.items)

    def turn(self, turn: int | None) -> ScoredTurn | None:
        """A turn's items, or (None) the closing block's; None where it has no items and so does not count."""
        if turn is None:
            return self._block
        if turn not in self._turns:  # one that no item names holds the `each` items alone
            self._turns[turn] = None if self._each is None else replace(self._each, turn=turn)
        return self._turns[turn]

    def strict(self, turn: int) -> ScoredTurn | None:
        """What the gate after a turn asks: its strict items and what they wait for; None where it has none."""
        if turn not in self._strict:
            scored = self.turn(turn)
            strict = None if scored is None else scored.strict()
            self._strict[turn] = strict if strict is not None and strict.items else None
        return self._strict[turn]

    def is_open_ended(self, ending: Ending) -> bool:
        """Whether nothing but the dialogue says how many turns count."""
        return ending.planned is None and self.checklist.last_turn is None

    def check(self, trace: Trace, ending: Ending, *, reuse: bool = False, judge: Judge | None = None) -> CheckedTrace:
        """The L turns that count, with the checks run that were written as data. With `reuse`, turns that were scored
        with this judge before (`CheckedTrace.remember`), and have not changed, come with that score.

        They are the planned turns, else those up to the largest that an item names, else those that happened; a turn
        without items does not count, and turns beyond these do not either. Every item of a turn that was never reached
        is false."""
        settled = self._settled(trace, ending, judge) if reuse else Settled()
        count = ending.planned
        if count is None and self.checklist.last_turn is not None:
            count = self.checklist.last_turn + 1
        checked = []
        for index in [*range(settled.turns, ending.turns if count is None else count), None]:
            turn = self.turn(index)
            if turn is None:
                continue
            if index is not None and index >= ending.turns:
                never: list[ItemColumn | None] = [ItemColumn(value=False, reason=ending.unreached)] * len(turn.items)
                checked.append(CheckedTurn(turn=turn, steps=0, columns=never, reached=False))
                continue
            cut = ending.cuts.get(index)
            if index is not None and reuse:
                by, known = trace.turns[index].memo.get(turn, (None, None))
                if known is not None and by is judge and known.cut == cut:
                    checked.append(known)
                    continue
            checked.append(turn.check(trace, cut=cut))
        return CheckedTrace(plan=self, ending=ending, settled=settled, turns=checked)

    def _settled(self, trace: Trace, ending: Ending, judge: Judge | None) -> Settled:
        """What was remembered of the trace's first turns before it grew. Of planned turns, and those that items name,
        nothing is."""
        if self.is_open_ended(ending):
            for last in (ending.turns - 2, ending.turns - 3):
                found = trace.turns[last].memo.get(self) if last >= 0 else None
                if found is not None and found.judge is judge:
                    return found  # type: ignore[no-any-return]  # of the type that went in
        return Settled()

    def _scored_turn(self, turn: int | None, items: Sequence[Item]) -> ScoredTurn | None:
        if not items:
            return None
        place = {item.id: index for index, item in enumerate(items)}
        return ScoredTurn(
            turn=turn,
            items=tuple(items),
            checks=tuple(self._checks[item.id] for item in items),
            weights=tuple(normalised([item.weight for item in items])),
            deps=tuple(tuple(place[name] for name in item.parents) for item in items),
        )


__all__ = ["PENDING", "CheckedTrace", "CheckedTurn", "Plan", "ScoredTurn"]
