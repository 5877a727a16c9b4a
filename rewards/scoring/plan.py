"""Plan: a checklist made ready to score any number of traces, and what its checks find in one of them.

Checks are resolved, weights normalised and dependencies turned into indices once for all traces. Which turns of a trace
count is defined in docs/method.md, "Scope and L"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import TurnScore
from cm2_agent.types.trace import Trace

from .check_limits import DISABLED, CheckLimits
from .checks import Resolved, resolve, run_check
from .data_checks import DataCheck
from .ending import Ending
from .function_checks import PENDING, FunctionChecks
from .shaping import ItemColumn, Share, normalised, only_open


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

    def run_checks(self, trace: Trace, *, cut: str | None = None, limits: CheckLimits | None = None) -> CheckedTurn:
        """Run the checks on the turn, which the trace must have reached. `cut` says why it ended early: hold and avoid
        items are false then. Blocks until the functions have answered or run out of time."""
        functions = FunctionChecks(trace)
        checked = self.check(trace, functions, cut=cut)
        functions.run(limits or CheckLimits())
        checked.close()
        return checked

    def check(self, trace: Trace, functions: FunctionChecks, *, cut: str | None = None) -> CheckedTurn:
        """Run the checks that were written as data, and note the functions to ask. Call `close` when these have
        answered."""
        steps = trace.scope(self.turn).count
        columns: list[ItemColumn | None] = []
        for at, (item, check) in enumerate(zip(self.items, self.checks, strict=True)):
            if cut is not None and item.kind != "reach":
                columns.append(ItemColumn(value=False, reason=cut))
            elif check is None:
                columns.append(None if steps else ItemColumn(value=False))
            elif isinstance(check, DataCheck) or not steps:
                columns.append(run_check(check, item, trace, self.turn))
            else:
                columns.append(PENDING)
                functions.add(check, item, self.turn, columns, at)
        return CheckedTurn(turn=self, steps=steps, columns=columns, cut=cut)


@dataclass(kw_only=True)
class CheckedTurn:
    """A turn of one trace whose checks have run: an item's column is None while a judge is still to be asked. `score`
    is there where the turn was scored before and has not changed."""

    turn: ScoredTurn
    steps: int
    columns: list[ItemColumn | None] = field(default_factory=list)
    reached: bool = True
    cut: str | None = None
    score: TurnScore | None = None
    share: Share | None = None
    """What the score adds to the reward."""

    def close(self) -> None:
        """Settle what hangs on an item that is known to be false or NULL, now that all checks have answered."""
        if None in self.columns:
            self.columns[:] = only_open(self.columns, self.turn.deps)

    def remember(self, trace: Trace, judge: Judge | None) -> None:
        """Keep the score with the turn, unless it is NULL for what may pass."""
        if self.turn.turn is not None and self.reached and not any(map(_may_pass, self.columns)):
            trace.turns[self.turn.turn].memo[self.turn] = (judge, self)

    def is_remembered(self, trace: Trace) -> bool:
        if self.turn.turn is None:
            return False
        _, known = trace.turns[self.turn.turn].memo.get(self.turn, (None, None))
        return known is self


def _may_pass(column: ItemColumn | None) -> bool:
    if column is None or column.value is not None:
        return False
    lasts = column.cause == "content" or column.reason in ("no judge", "check failed")
    return column.reason == DISABLED or not lasts


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """The scores of a dialogue's first `turns` turns, to which nothing can be added any more: `missing` and `rewards`
    are what they add to the reward."""

    judge: Judge | None = None
    turns: int = 0
    scores: tuple[TurnScore, ...] = ()
    missing: float = 0.0
    rewards: tuple[float | None, ...] = ()


class Plan:
    """A checklist with its checks resolved. Raises ChecklistError where one cannot be."""

    def __init__(self, checklist: Checklist, functions: Mapping[str, CheckFunction] | None = None) -> None:
        self.checklist = checklist.bound(functions) if functions else checklist
        self._checks = {
            item.id: None if item.check is None else resolve(item.check, functions, item=item.id)
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

    def check_turns(
        self,
        trace: Trace,
        ending: Ending,
        functions: FunctionChecks,
        *,
        reuse: bool = False,
        judge: Judge | None = None,
        settled: Settled | None = None,
    ) -> list[CheckedTurn]:
        """The L turns that count with their checks run, in order, the closing block last; without those that are
        `settled`. `ending` is the trace's. The functions to ask are noted in `functions`; `close` each turn when they
        have answered. With `reuse`, turns that were scored with this judge before (`remember`), and have not changed,
        come with that score.

        They are the planned turns, else those up to the largest that an item names, else those that happened; a turn
        without items does not count, and turns beyond these do not either. Every item of a turn that was never reached
        is false."""
        count = ending.planned
        if count is None and self.checklist.last_turn is not None:
            count = self.checklist.last_turn + 1
        checked = []
        first = 0 if settled is None else settled.turns
        for index in [*range(first, ending.turns if count is None else count), None]:
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
            checked.append(turn.check(trace, functions, cut=cut))
        return checked

    def settled(self, trace: Trace, ending: Ending, judge: Judge | None) -> Settled:
        """What `settle` noted of the trace before it grew. Of planned turns, and those that items name, nothing is."""
        if ending.planned is None and self.checklist.last_turn is None:
            for last in (ending.turns - 2, ending.turns - 3):
                found = trace.turns[last].memo.get(self) if last >= 0 else None
                if found is not None and found.judge is judge:
                    return found  # type: ignore[no-any-return]
        return Settled(judge=judge)

    def settle(self, trace: Trace, ending: Ending, settled: Settled, checked: Sequence[CheckedTurn]) -> None:
        """Note the scores of all turns but the last, which may go on."""
        if ending.planned is not None or self.checklist.last_turn is not None or ending.turns - 1 <= settled.turns:
            return
        more = [turn for turn in checked if turn.turn.turn is not None and turn.turn.turn < ending.turns - 1]
        if all(turn.is_remembered(trace) for turn in more):
            trace.turns[ending.turns - 2].memo[self] = Settled(
                judge=settled.judge,
                turns=ending.turns - 1,
                scores=(*settled.scores, *(turn.score for turn in more if turn.score is not None)),
                missing=math.fsum((settled.missing, *(turn.share.missing for turn in more if turn.share is not None))),
                rewards=(*settled.rewards, *(turn.share.reward for turn in more if turn.share is not None)),
            )

    def _scored_turn(self, turn: int | None, items: Sequence[Item]) -> ScoredTurn | None:
        if not items:
            return None
        place = {item.id: index for index, item in enumerate(items)}
        return ScoredTurn(
            turn=turn,
            items=tuple(items),
            checks=tuple(self._checks[item.id] for item in items),
            weights=tuple(normalised([item.weight for item in items])),
            deps=tuple(tuple(dict.fromkeys(place[name] for name in item.depends_on)) for item in items),
        )


__all__ = ["CheckedTurn", "Plan", "ScoredTurn", "Settled"]
