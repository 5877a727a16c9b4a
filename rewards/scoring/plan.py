"""Plan: a checklist made ready to score any number of traces, and what its checks find in one of them.

Checks are resolved, weights normalised and dependencies turned into indices once for all traces. Which turns of a trace
count is defined in docs/method.md, "Scope and L"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.protocols import Judge
from cm2_agent.types.scripted_turns import items_that_apply
from cm2_agent.types.trace import Trace

from .applicability import PreparedItem
from .checked_trace import CheckedTrace, Settled
from .ending import Ending
from .scored_turn import CheckedTurn, ScoredTurn
from .shaping import ItemColumn

_MOST_VARIANTS = 4096


class Plan:
    """A checklist with its checks resolved. Raises ChecklistError where one cannot be."""

    def __init__(self, checklist: Checklist, functions: Mapping[str, CheckFunction] | None = None) -> None:
        self.checklist = checklist.bound(functions) if functions else checklist
        self._prepared = {item.id: PreparedItem.of(item, functions) for item in self.checklist.items}
        self._by_user = any(one.by_user for one in self._prepared.values())
        own = {item.turn for item in self.checklist.items if isinstance(item.turn, int)}
        self._turns = {turn: self._scored_turn(turn, self.checklist.of_turn(turn)) for turn in own}
        self._each = self._scored_turn(0, [item for item in self.checklist.items if item.turn == "each"])
        self._block = self._scored_turn(None, self.checklist.block)
        self._variants: dict[tuple[int | None, tuple[str, ...]], ScoredTurn | None] = {}
        self._strict: dict[ScoredTurn, ScoredTurn | None] = {}

    @cached_property
    def judged(self) -> bool:
        """Whether any item needs a judge."""
        return any(item.is_judged or item.when_question is not None for item in self.checklist)

    @cached_property
    def gated(self) -> bool:
        """Whether any item is strict."""
        return any(item.required_for_next_turn for item in self.checklist.items)

    def turn(self, turn: int | None, messages: Sequence[str] | None = None) -> ScoredTurn | None:
        """A turn's items, or (None) the closing block's; None where it has no items and so does not count. Of a task
        whose user's `messages` are fixed, those that apply to them."""
        if messages is not None and self._by_user:
            return self._variant(turn, messages)
        if turn is None:
            return self._block
        if turn not in self._turns:  # one that no item names holds the `each` items alone
            self._turns[turn] = None if self._each is None else replace(self._each, turn=turn)
        return self._turns[turn]

    def strict(self, turn: int, messages: Sequence[str] | None = None) -> ScoredTurn | None:
        """What the gate after a turn asks: its strict items and what they hang on; None where it has none."""
        scored = self.turn(turn, messages)
        if scored is None:
            return None
        if scored not in self._strict:
            strict = scored.strict()
            self._strict[scored] = strict if strict.items else None
        return self._strict[scored]

    def _variant(self, turn: int | None, messages: Sequence[str]) -> ScoredTurn | None:
        items = self.checklist.block if turn is None else self.checklist.of_turn(turn)
        left = items_that_apply(items, turn, messages)
        key = (turn, tuple(item.id for item in left))
        if key not in self._variants:
            if len(self._variants) >= _MOST_VARIANTS:
                self._variants.clear()
                self._strict.clear()
            prepared = [self._prepared[item.id] for item in left]
            self._variants[key] = ScoredTurn.of(turn, prepared, known=True) if prepared else None
        return self._variants[key]

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
            turn = self.turn(index, ending.messages)
            if turn is None:
                continue
            if index is not None and index >= ending.turns:
                never: list[ItemColumn | None] = [ItemColumn(value=False, reason=ending.unreached)] * len(turn.items)
                checked.append(CheckedTurn(turn=turn, steps=0, columns=never, reached=False))
                continue
            cut = ending.cuts.get(index)
            if index is not None and reuse:
                by, known = trace.turns[index].memo.get(turn, (None, None))
                if known is not None and by is judge and known.cut == cut and known.live == ending.live:
                    checked.append(known)
                    continue
            checked.append(turn.check(trace, cut=cut, live=ending.live))
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
        return ScoredTurn.of(turn, [self._prepared[item.id] for item in items]) if items else None


__all__ = ["Plan"]
