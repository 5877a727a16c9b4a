"""A checklist made ready to be scored: checks resolved, weights normalised, dependencies as indices, once for all
traces; and which turns of a trace count (method.md §2). Apart from the scorer, which asks and adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.checklist_rules import MAX_TURNS
from cm2_agent.types.run_attributes import CENSORED_TURN, CUT, TASK_TURNS
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

from .checks import Resolved, resolve
from .shaping import normalised

UNDECIDED = "verdict"
"""What the runner writes under `cm2.cut` where the gate had no verdict: nobody's limit, so nobody's zero."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The items of one turn, or of the closing block (`turn` None), with what scoring needs of them; indices are into
    `items`."""

    turn: int | None
    items: tuple[Item, ...]
    checks: tuple[Resolved | None, ...]
    weights: tuple[float, ...]
    deps: tuple[tuple[int, ...], ...]

    def strict(self) -> Scope:
        """The scope with the strict items and what they wait for alone (weights do not matter to a gate)."""
        wanted = {index for index, item in enumerate(self.items) if item.required_for_next_turn}
        waiting = list(wanted)
        while waiting:
            for parent in self.deps[waiting.pop()]:
                if parent not in wanted:
                    wanted.add(parent)
                    waiting.append(parent)
        kept = sorted(wanted)
        place = {index: at for at, index in enumerate(kept)}
        return Scope(
            turn=self.turn,
            items=tuple(self.items[index] for index in kept),
            checks=tuple(self.checks[index] for index in kept),
            weights=tuple(self.weights[index] for index in kept),
            deps=tuple(tuple(place[parent] for parent in self.deps[index]) for index in kept),
        )


class Plan:
    """A checklist with its checks resolved. Raises ChecklistError where one cannot be."""

    def __init__(self, checklist: Checklist, functions: Mapping[str, CheckFunction] | None = None) -> None:
        self.checklist = checklist.bound(functions) if functions else checklist
        self._checks = {
            item.id: None if item.check is None else resolve(item.check, functions, item=item.id)
            for item in self.checklist.items
        }
        self._scopes: dict[int | None, Scope | None] = {}
        self._strict: dict[int, Scope | None] = {}

    @cached_property
    def judged(self) -> bool:
        """Whether any item needs a judge."""
        return any(check is None for check in self._checks.values())

    @cached_property
    def gated(self) -> bool:
        """Whether any item is strict."""
        return any(item.required_for_next_turn for item in self.checklist.items)

    def scope(self, turn: int | None) -> Scope | None:
        """The scope of a turn or (None) of the closing block; None where it has no items and so does not count."""
        if turn not in self._scopes:
            self._scopes[turn] = self._made(turn)
        return self._scopes[turn]

    def strict(self, turn: int) -> Scope | None:
        """What the gate after a turn asks: its strict items and what they wait for; None where it has none."""
        if turn not in self._strict:
            scope = self.scope(turn)
            strict = None if scope is None else scope.strict()
            self._strict[turn] = strict if strict is not None and strict.items else None
        return self._strict[turn]

    def _made(self, turn: int | None) -> Scope | None:
        items = self.checklist.block if turn is None else self.checklist.of_turn(turn)
        if not items:
            return None
        place = {item.id: index for index, item in enumerate(items)}
        return Scope(
            turn=turn,
            items=items,
            checks=tuple(self._checks[item.id] for item in items),
            weights=tuple(normalised([item.weight for item in items])),
            deps=tuple(tuple(dict.fromkeys(place[name] for name in item.depends_on)) for item in items),
        )

    def counted(self, trace: Trace, task: Task | None) -> list[Scope]:
        """The L scopes that count, in order, the closing block last (method.md §2).

        The turns are the task's scripted turns (the given task's, else what the trace says of its own), else up to the
        largest that an item names, else the turns that happened; a turn without items does not count. Turns beyond that
        do not count either."""
        turns = planned_turns(trace, task)
        if turns is None and self.checklist.last_turn is not None:
            turns = self.checklist.last_turn + 1
        if turns is None:
            turns = len(trace.turns)
        scopes = [self.scope(turn) for turn in range(turns)] + [self.scope(None)]
        return [scope for scope in scopes if scope is not None]


def planned_turns(trace: Trace, task: Task | None) -> int | None:
    """How many user turns were fixed before the rollout; None where nobody knows, or a simulated user decides."""
    if task is not None:
        return task.scripted_turns
    turns = trace.attributes.get(TASK_TURNS)
    return turns if isinstance(turns, int) and not isinstance(turns, bool) and 0 < turns <= MAX_TURNS else None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the dialogue ended, for scoring: the turn at which the gate closed, the turns that a limit cut, and whether a
    limit ended it.

    A turn is cut where its run was, and it neither ended in a whole reply nor went on: a limit that fell after the
    reply cuts the closing block alone."""

    gate: int | None
    cut_turns: frozenset[int]
    limited: bool

    @classmethod
    def of(cls, trace: Trace) -> Ending:
        gate = trace.attributes.get(CENSORED_TURN)
        cut = [place for place, run in enumerate(trace.runs) if run.attributes.get(CUT) is not None]
        turns = frozenset(turn for place in cut if (turn := _cut_turn(trace, place)) is not None)
        return cls(
            gate=gate if isinstance(gate, int) else None,
            cut_turns=turns,
            limited=bool(cut) and cut[-1] == len(trace.runs) - 1,
        )

    @property
    def unreached(self) -> str:
        """Why a turn that did not happen did not; `unreached` where nothing but the user's silence is known."""
        return "gate" if self.gate is not None else "limit" if self.limited else "unreached"

    def cuts(self, scope: Scope, trace: Trace, planned: int | None) -> str | None:
        """Why the scope ended early, None where it ran its course."""
        if scope.turn is not None:
            return "limit" if scope.turn in self.cut_turns else None
        if self.gate is not None and (planned is None or len(trace.turns) < planned):
            return "gate"
        return "limit" if self.limited else None


def _cut_turn(trace: Trace, place: int) -> int | None:
    """The turn that the cut in the run at `place` broke off, None where it fell between turns or the turn went on
    later."""
    seen = trace if place == len(trace.runs) - 1 else Trace(id=trace.id, runs=trace.runs[: place + 1])
    if not seen.turns:
        return None
    last = seen.turns[-1]
    step = last.steps[-1]
    whole = step.is_reply and "length" not in (
        step.message.finish_reason,
        step.call.finish_reason if step.call else None,
    )
    went_on = len(trace.turns[last.index].steps) > len(last.steps)
    return None if whole or went_on else last.index
