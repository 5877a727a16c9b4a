"""The stack: several rewards made one, `R = Π gate · Π multiply · (Σ w·add / Σ w) − Σ w·penalty`; apart from the
rewards, which know nothing of each other.

A gate is 1 where its value is at least its threshold and 0 elsewhere: what it guards is released on condition, as in
FlowSteer. An empty product or mean is 1, so that a gate alone is the gate. Any NULL component makes R NULL, whatever
the others say. Without penalties R is in [0, 1]; with them it can be as low as −Σ w."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import GatedScorer, Reward
from cm2_agent.types.score import Component, Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

from ..scoring.ending import failure_of
from ..scoring.scorer import ChecklistScorer
from .component import Context, Plug, plug

CODE = 1
"""The version of this arithmetic; raised whenever the same components could give another number."""
Part: TypeAlias = Literal["gate", "multiply", "add", "penalty"]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A reward at its place in the formula. `weight` counts for add and penalty, `threshold` for a gate."""

    part: Part
    reward: Plug | GatedScorer
    weight: float = 1.0
    threshold: float = 1.0

    @property
    def name(self) -> str:
        return self.reward.name if isinstance(self.reward, Plug) else "checklist"

    @property
    def version(self) -> str:
        """Everything of the slot that could change R."""
        number = (
            f">={self.threshold:g}"
            if self.part == "gate"
            else f"*{self.weight:.12g}"
            if self.part != "multiply"
            else ""
        )
        return f"{self.part}{number} {self.name}={self.reward.version}"


Given: TypeAlias = "Slot | Plug | Reward | GatedScorer | Checklist"


def gate(reward: Given, threshold: float = 1.0) -> Slot:
    """R is released only where the reward is at least `threshold`, in (0, 1]."""
    if not 0 < threshold <= 1:
        raise ChecklistError(
            f"a gate's threshold is {threshold}; expected a number above 0 and up to 1 (at 0 it would always be open)"
        )
    return replace(_slot(reward, "gate"), threshold=threshold)


def multiply(reward: Given) -> Slot:
    """R is multiplied by the reward."""
    return _slot(reward, "multiply")


def add(reward: Given, weight: float = 1.0) -> Slot:
    """The reward is averaged in, by its weight among the others that are added."""
    return replace(_slot(reward, "add"), weight=_weight(weight))


def penalty(reward: Given, weight: float = 1.0) -> Slot:
    """`weight` times the reward is taken off R at the end: 1 is the worst it can say."""
    return replace(_slot(reward, "penalty"), weight=_weight(weight))


class Stack:
    """A scorer made of rewards: `Stack(checklist, gate(outcome("success")), penalty(length_penalty(8, 16), 0.1))`.

    Takes slots, and bare rewards, which are added with weight 1. At most one is a checklist (a Checklist or a
    ChecklistScorer): it alone has turns and steps, so its turn scores are the Score's, and its strict items gate
    rollouts. Every value is stored in `Score.components` by name, and `version` names every component, its version and
    place. A stack of one added checklist is that checklist: the same version, no components, and so every level of
    credit.

    Raises ChecklistError: nothing given, two rewards of one name, two checklists, added weights that are all 0.

    >>> def short(trace):
    ...     return len(trace.steps) <= 4
    >>> asyncio.run(Stack(short)(Trace(id="t", runs=()))).components
    {'short': 1.0}
    """

    def __init__(self, *rewards: Given) -> None:
        self.slots = tuple(one if isinstance(one, Slot) else _slot(one, "add") for one in rewards)
        if not self.slots:
            raise ChecklistError("a stack without rewards; give at least one, such as a checklist")
        names = [slot.name for slot in self.slots]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            hint = "values are stored by name: plug(reward, name=…) gives another"
            raise ChecklistError(f"a stack with two rewards named {', '.join(twice)}; {hint}")
        added = [slot.weight for slot in self.slots if slot.part == "add"]
        if added and not math.fsum(added) > 0:
            raise ChecklistError(f"the added rewards of a stack have the weights {added}; expected one above 0")
        self._checklist = next((slot.reward for slot in self.slots if not isinstance(slot.reward, Plug)), None)
        self._alone = len(self.slots) == 1 and self.slots[0].part == "add" and self._checklist is not None
        self.version = self._version()

    def _version(self) -> str:
        if self._alone:
            return self.slots[0].reward.version
        # the order of slots of one part changes nothing, so it is not part of the version
        return f"stack[{' | '.join(sorted(slot.version for slot in self.slots))}];stack={CODE}"

    @property
    def checklist(self) -> Checklist | None:
        """The checklist, with its functions; None where there is none, or each task brings its own."""
        return None if self._checklist is None else self._checklist.checklist

    @property
    def of_group(self) -> bool:
        """Whether a component compares the rollouts of a group: then single traces are NULL and `score_group` is the
        way."""
        return any(isinstance(slot.reward, Plug) and slot.reward.of_group for slot in self.slots)

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        """The trace's score. Raises what the checklist's scorer raises; a component that fails is a NULL."""
        (score,) = await self._scores([trace], task, Context(task=task))
        return score

    async def score_group(self, traces: Sequence[Trace], task: Task | None = None) -> list[Score]:
        """The scores of a group's rollouts, in their order, with the rewards that compare them."""
        return await self._scores(traces, task, Context(task=task, group=tuple(traces)))

    async def components(self, traces: Sequence[Trace], task: Task | None = None) -> list[dict[str, Component]]:
        """What each plug says of each trace, with its explanation; the checklist is not among them."""
        return await self._components(traces, Context(task=task, group=tuple(traces)))

    async def gate(self, trace: Trace, turn: int, task: Task | None = None) -> bool | None:
        """The checklist's gate after a turn (ChecklistScorer.gate); True where there is no checklist."""
        return True if self._checklist is None else await self._checklist.gate(trace, turn, task)

    def gate_hash(self, task: Task | None = None) -> str | None:
        return None if self._checklist is None else self._checklist.gate_hash(task)

    async def _scores(self, traces: Sequence[Trace], task: Task | None, context: Context) -> list[Score]:
        living = [trace for trace in traces if failure_of(trace) is None]
        found: dict[int, dict[str, Component]] = {}
        if living:
            told = await self._components(living, replace(context, group=tuple(living) if context.group else ()))
            found = {id(trace): one for trace, one in zip(living, told, strict=True)}
        return [await self._score(trace, task, found.get(id(trace))) for trace in traces]

    async def _components(self, traces: Sequence[Trace], context: Context) -> list[dict[str, Component]]:
        plugs = [slot.reward for slot in self.slots if isinstance(slot.reward, Plug)]
        if context.group:
            told = await asyncio.gather(*(one.group(traces, context) for one in plugs))
        else:
            told = await asyncio.gather(*(_each(one, traces, context) for one in plugs))
        return [{one.name: values[at] for one, values in zip(plugs, told, strict=True)} for at in range(len(traces))]

    async def _score(self, trace: Trace, task: Task | None, told: dict[str, Component] | None) -> Score:
        empty = Score(
            trace_id=trace.id,
            reward_version=self.version,
            reward=None,
            runs=len(trace.runs),
            null_reason=failure_of(trace),
        )
        base = (
            empty
            if self._checklist is None
            else replace(await self._checklist(trace, task), reward_version=self.version)
        )
        if self._alone or told is None:
            return base
        values = {
            slot.name: base.reward if slot.reward is self._checklist else told[slot.name].value for slot in self.slots
        }
        reward = combine(self.slots, values)
        reason = None
        if (
            reward is None
        ):  # the checklist's own reason first: what no reward could be given for says more than who gave none
            reason = base.null_reason or "component: " + ", ".join(
                name for name, value in values.items() if value is None
            )
        return replace(base, reward=reward, null_reason=reason, components=values)


def combine(slots: Sequence[Slot], values: dict[str, float | None]) -> float | None:
    """R from the components' values by slot name, None where one of them is."""
    known = {name: value for name, value in values.items() if value is not None}
    if len(known) < len(slots):
        return None
    product = 1.0
    for slot in slots:
        if slot.part == "gate":
            product *= float(known[slot.name] >= slot.threshold)
        elif slot.part == "multiply":
            product *= known[slot.name]
    added = [slot for slot in slots if slot.part == "add"]
    total = math.fsum(slot.weight for slot in added)
    # shares of the weight rather than a quotient of sums: with values of 1 it is 1 to the bit, and never above
    mean = min(1.0, math.fsum(slot.weight / total * known[slot.name] for slot in added)) if added else 1.0
    taken = math.fsum(slot.weight * known[slot.name] for slot in slots if slot.part == "penalty")
    return product * mean - taken


async def _each(one: Plug, traces: Sequence[Trace], context: Context) -> list[Component]:
    return [await one(trace, context) for trace in traces]


def _slot(reward: Given, part: Part) -> Slot:
    if isinstance(reward, Slot):
        raise ChecklistError(f"{part} was given a slot that is a {reward.part} already; give the reward itself")
    if isinstance(reward, Checklist):
        return Slot(part=part, reward=ChecklistScorer(reward))
    if isinstance(reward, ChecklistScorer):
        return Slot(part=part, reward=reward)
    return Slot(part=part, reward=plug(reward))


def _weight(weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ChecklistError(f"a weight in a stack is {weight}; expected a number of 0 or more")
    return float(weight)


__all__ = ["Slot", "Stack", "add", "combine", "gate", "multiply", "penalty"]
