"""The stack: several rewards made one, `R = Π gate · Π multiply · (Σ w·add / Σ w) − Σ w·penalty`.

A gate is 1 where its value is at least its threshold and 0 elsewhere: what it guards is released on condition, as in
FlowSteer. An empty product or mean is 1, so that a gate alone is the gate. Any NULL component makes R NULL, whatever
the others say; its bounds are those of the components. Without penalties R is in [0, 1]; with them it can be as low as
−Σ w."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import GatedScorer, Reward
from cm2_agent.types.score import Component, Score
from cm2_agent.types.score_bounds import Bounds
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

from ..scoring.ending import failure_of
from ..scoring.scorer import ChecklistScorer
from .component import Context, RewardComponent, as_component

CODE = 1
"""The version of this arithmetic; raised whenever the same components could give another number."""
Role: TypeAlias = Literal["gate", "multiply", "add", "penalty"]


@dataclass(frozen=True, kw_only=True)
class StackTerm:
    """A reward with its role in the formula. `weight` counts for add and penalty, `threshold` for a gate."""

    role: Role
    reward: RewardComponent | GatedScorer
    weight: float = 1.0
    threshold: float = 1.0

    @property
    def name(self) -> str:
        return self.reward.name if isinstance(self.reward, RewardComponent) else "checklist"

    @property
    def version(self) -> str:
        """Everything of the term that could change R."""
        number = ""
        if self.role == "gate":
            number = f">={self.threshold:g}"
        elif self.role != "multiply":
            number = f"*{self.weight:.12g}"
        return f"{self.role}{number} {self.name}={self.reward.version}"


RewardLike: TypeAlias = "StackTerm | RewardComponent | Reward | GatedScorer | Checklist"


def gate(reward: RewardLike, threshold: float = 1.0) -> StackTerm:
    """A term that lets R through only where the reward is at least `threshold`, in (0, 1]; elsewhere R is 0.

    Raises:
        ChecklistError: A threshold outside (0, 1].

    >>> from cm2_agent import Checklist, Item, Stack
    >>> from cm2_agent.rewards import gate, outcome
    >>> support = Checklist(Item("replies", check={"replied": True}), name="support")
    >>> [(term.name, term.role) for term in Stack(support, gate(outcome("success"))).terms]
    [('checklist', 'add'), ('success', 'gate')]
    """
    if not 0 < threshold <= 1:
        raise ChecklistError(
            f"a gate's threshold is {threshold}; expected a number above 0 and up to 1 (at 0 it would always be open)"
        )
    return replace(_term(reward, "gate"), threshold=threshold)


def multiply(reward: RewardLike) -> StackTerm:
    """A term by which R is multiplied: the reward, in [0, 1].

    >>> import asyncio
    >>> from cm2_agent import Stack, Trace
    >>> from cm2_agent.rewards import multiply
    >>> def solved(trace):
    ...     return 1.0
    >>> def care(trace):
    ...     return 0.5
    >>> asyncio.run(Stack(solved, multiply(care))(Trace(id="t", runs=()))).reward
    0.5
    """
    return _term(reward, "multiply")


def add(reward: RewardLike, weight: float = 1.0) -> StackTerm:
    """A term that is averaged in, by its weight among all that are added; a bare reward has weight 1.

    Raises:
        ChecklistError: A weight that is negative or not finite.

    >>> import asyncio
    >>> from cm2_agent import Stack, Trace
    >>> from cm2_agent.rewards import add
    >>> def solved(trace):
    ...     return 1.0
    >>> def polite(trace):
    ...     return 0.0
    >>> asyncio.run(Stack(add(solved, weight=3), polite)(Trace(id="t", runs=()))).reward
    0.75
    """
    return replace(_term(reward, "add"), weight=_weight(weight))


def penalty(reward: RewardLike, weight: float = 1.0) -> StackTerm:
    """A term that is subtracted from R at the end: `weight` times the reward, where 1 is the worst.

    Raises:
        ChecklistError: A weight that is negative or not finite.

    >>> import asyncio
    >>> from cm2_agent import Stack, Trace
    >>> from cm2_agent.rewards import penalty
    >>> def solved(trace):
    ...     return 1.0
    >>> def rude(trace):
    ...     return True
    >>> asyncio.run(Stack(solved, penalty(rude, weight=0.25))(Trace(id="t", runs=()))).reward
    0.75
    """
    return replace(_term(reward, "penalty"), weight=_weight(weight))


class Stack:
    """A scorer made of rewards: `Stack(checklist, gate(outcome("success")), penalty(length_penalty(8, 16), 0.1))`.

    Takes terms, and bare rewards, which are added with weight 1. At most one is a checklist (a Checklist or a
    ChecklistScorer): it alone has turns and steps, so its turn scores are the Score's, and its strict items gate
    rollouts. Every value is stored in `Score.components` by name, and `version` names every component, its version and
    place. A stack of one added checklist is that checklist: the same version, no components, and so every level of
    credit.

    Raises ChecklistError: nothing given, two rewards of one name, two checklists, added weights that are all 0.

    >>> import asyncio
    >>> from cm2_agent import Stack, Trace
    >>> def short(trace):
    ...     return len(trace.steps) <= 4
    >>> asyncio.run(Stack(short)(Trace(id="t", runs=()))).components
    {'short': 1.0}
    """

    def __init__(self, *rewards: RewardLike) -> None:
        self.terms = tuple(one if isinstance(one, StackTerm) else _term(one, "add") for one in rewards)
        if not self.terms:
            raise ChecklistError("a stack without rewards; give at least one, such as a checklist")
        names = [term.name for term in self.terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            hint = "values are stored by name: as_component(reward, name=…) gives another"
            raise ChecklistError(f"a stack with two rewards named {', '.join(twice)}; {hint}")
        added = [term.weight for term in self.terms if term.role == "add"]
        if added and not math.fsum(added) > 0:
            raise ChecklistError(f"the added rewards of a stack have the weights {added}; expected one above 0")
        checklists = [term.reward for term in self.terms if not isinstance(term.reward, RewardComponent)]
        self._checklist = checklists[0] if checklists else None
        self._checklist_only = len(self.terms) == 1 and self.terms[0].role == "add" and self._checklist is not None
        self.version = self._version()

    def _version(self) -> str:
        if self._checklist_only:
            return self.terms[0].reward.version
        # the order of terms of one role changes nothing, so it is not part of the version
        return f"stack[{' | '.join(sorted(term.version for term in self.terms))}];stack={CODE}"

    @property
    def checklist(self) -> Checklist | None:
        """The checklist, with its functions; None where there is none, or each task brings its own."""
        return None if self._checklist is None else self._checklist.checklist

    @property
    def of_group(self) -> bool:
        """Whether a component compares the rollouts of a group: then single traces are NULL and `score_group` is the
        way."""
        return any(isinstance(term.reward, RewardComponent) and term.reward.of_group for term in self.terms)

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        """The trace's score. Raises what the checklist's scorer raises; a component that fails is a NULL."""
        (score,) = await self._scores([trace], task, Context(task=task))
        return score

    async def score_group(self, traces: Sequence[Trace], task: Task | None = None) -> list[Score]:
        """The scores of a group's rollouts, in their order, with the rewards that compare them."""
        return await self._scores(traces, task, Context(task=task, group=tuple(traces)))

    async def components(self, traces: Sequence[Trace], task: Task | None = None) -> list[dict[str, Component]]:
        """What each component says of each trace, with its explanation; the checklist is not among them."""
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
            values = await self._components(living, replace(context, group=tuple(living) if context.group else ()))
            found = {id(trace): one for trace, one in zip(living, values, strict=True)}
        return [await self._score(trace, task, found.get(id(trace))) for trace in traces]

    async def _components(self, traces: Sequence[Trace], context: Context) -> list[dict[str, Component]]:
        components = [term.reward for term in self.terms if isinstance(term.reward, RewardComponent)]
        if context.group:
            answers = await asyncio.gather(*(one.group(traces, context) for one in components))
        else:
            answers = await asyncio.gather(*(_each(one, traces, context) for one in components))
        names = [one.name for one in components]
        return (
            [dict(zip(names, values, strict=True)) for values in zip(*answers, strict=True)]
            if names
            else [{} for _ in traces]
        )

    async def _score(self, trace: Trace, task: Task | None, found: dict[str, Component] | None) -> Score:
        """The score from the components' answers, `found` by name; None where the dialogue died and nobody was
        asked."""
        if self._checklist is None:
            base = Score(
                trace_id=trace.id,
                reward_version=self.version,
                reward=None,
                runs=len(trace.runs),
                null_reason=failure_of(trace),
            )
        else:
            base = replace(await self._checklist(trace, task), reward_version=self.version)
        if self._checklist_only or found is None:
            return base
        values: dict[str, float | None] = {}
        bounds: dict[str, Bounds | None] = {}
        for term in self.terms:
            if term.reward is self._checklist:
                values[term.name], bounds[term.name] = base.reward, base.bounds
            else:
                values[term.name], bounds[term.name] = found[term.name].value, found[term.name].bounds
        reward, reason = combine(self.terms, values), None
        least, most = combine_bounds(self.terms, bounds)
        if reward is None:  # the checklist's own reason first: it says why no reward could be given at all
            unknown = ", ".join(name for name, value in values.items() if value is None)
            reason = base.null_reason or f"component: {unknown}"
        return replace(base, reward=reward, null_reason=reason, components=values, lower=least, upper=most)


def combine(terms: Sequence[StackTerm], values: Mapping[str, float | None]) -> float | None:
    """R from the components' values by term name, None where one of them is."""
    known = {name: value for name, value in values.items() if value is not None}
    return None if len(known) < len(terms) else _combined(terms, known)


def _combined(terms: Sequence[StackTerm], known: Mapping[str, float]) -> float:
    product = 1.0
    for term in terms:
        if term.role == "gate":
            product *= float(known[term.name] >= term.threshold)
        elif term.role == "multiply":
            product *= known[term.name]
    added = [term for term in terms if term.role == "add"]
    total = math.fsum(term.weight for term in added)
    # shares of the weight rather than a quotient of sums: with values of 1 it is 1 to the bit, and never above
    mean = min(1.0, math.fsum(term.weight / total * known[term.name] for term in added)) if added else 1.0
    subtracted = math.fsum(term.weight * known[term.name] for term in terms if term.role == "penalty")
    return product * mean - subtracted


def combine_bounds(
    terms: Sequence[StackTerm], bounds: Mapping[str, Bounds | None]
) -> tuple[float, float] | tuple[None, None]:
    """The least and the most that R can be, from the components' bounds by term name: what policy-caused NULLs leave
    open is unpaid in the least one, where a penalty counts in full. Both are None where a component is pending."""
    known = {name: one for name, one in bounds.items() if one is not None}
    if len(known) < len(terms):
        return None, None
    penalties = {term.name for term in terms if term.role == "penalty"}
    least = {name: one.upper if name in penalties else one.lower for name, one in known.items()}
    most = {name: one.lower if name in penalties else one.upper for name, one in known.items()}
    return _combined(terms, least), _combined(terms, most)


async def _each(one: RewardComponent, traces: Sequence[Trace], context: Context) -> list[Component]:
    return [await one(trace, context) for trace in traces]


def _term(reward: RewardLike, role: Role) -> StackTerm:
    if isinstance(reward, StackTerm):
        raise ChecklistError(f"{role} was given a term that is a {reward.role} already; give the reward itself")
    if isinstance(reward, Checklist):
        return StackTerm(role=role, reward=ChecklistScorer(reward))
    if isinstance(reward, ChecklistScorer):
        return StackTerm(role=role, reward=reward)
    return StackTerm(role=role, reward=as_component(reward))


def _weight(weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ChecklistError(f"a weight in a stack is {weight}; expected a number of 0 or more")
    return float(weight)


__all__ = ["Stack", "StackTerm", "add", "combine", "combine_bounds", "gate", "multiply", "penalty"]
