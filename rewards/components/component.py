"""Reward components: a function, a method or an object of the user's becomes a reward with a name and a version.

Here is decided what a returned value means: a reward that fails, or answers None or what is no number in [0, 1], is
NULL and never a number, and its score is pending. Where the trace itself keeps it from telling, it says so with the
Component's cause, and nothing is paid for it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cm2_agent.errors import BudgetExhausted, ChecklistError
from cm2_agent.types.checklist_item import function_source
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.protocols import Reward
from cm2_agent.types.score import Component
from cm2_agent.types.secrets import error_text
from cm2_agent.types.task import Task
from cm2_agent.types.text import shorten
from cm2_agent.types.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a reward may know beside the trace: the task it was made for, and the traces of its group where these were
    given."""

    task: Task | None = None
    group: tuple[Trace, ...] = ()


class RewardComponent:
    """A reward with a name and a version, whose answers are Components. Made by `as_component`.

    Args:
        function: Sync or async, of a trace or of a trace and its Context; it returns a number in [0, 1], a bool, a
            Component, or None where it cannot tell: NULL, and its group is not trained on. What the policy can bring
            about is better 0, or `Component(value=None, cause="content", …)`, which is unpaid (docs/method.md §4). With
            `of_group` it takes the traces of a group and returns one such value a trace.
        name: Under which the value is stored in `Score.components`.
        version: Names what could change the value.
        of_group: Whether it compares the rollouts of a group; asked about a single trace it is NULL then.

    >>> import asyncio
    >>> from cm2_agent import Trace
    >>> from cm2_agent.rewards import RewardComponent
    >>> brief = RewardComponent(lambda trace: len(trace.steps) <= 4, name="brief", version="1")
    >>> asyncio.run(brief(Trace(id="t", runs=()))).value
    1.0
    """

    def __init__(self, function: Callable[..., Any], *, name: str, version: str, of_group: bool = False) -> None:
        self.function, self.name, self.version, self.of_group = function, name, version, of_group
        self._arguments = _positional(function)

    async def __call__(self, trace: Trace, context: Context | None = None) -> Component:
        """The component of one trace. A failure is a NULL with its explanation; only BudgetExhausted is raised."""
        if self.of_group:
            return self.null(
                "it compares the rollouts of a group; score them together: await stack.score_group(traces, task)"
            )
        return self._component(await self._answer(trace, context or Context()))

    async def group(self, traces: Sequence[Trace], context: Context | None = None) -> list[Component]:
        """The components of a group's traces, in their order; a reward of single traces is asked about each."""
        given = context or Context(group=tuple(traces))
        if not self.of_group:
            return [await self(trace, given) for trace in traces]
        answer = await self._answer(traces, given)
        if isinstance(answer, _Failed):
            return [self.null(answer.why)] * len(traces)
        if not isinstance(answer, Sequence) or isinstance(answer, str) or len(answer) != len(traces):
            wrong = f"it answered {_shown(answer)} for {len(traces)} traces; expected one value a trace, in their order"
            return [self.null(wrong)] * len(traces)
        return [self._component(value) for value in answer]

    def null(self, why: str) -> Component:
        return Component(name=self.name, version=self.version, value=None, explanation=why, cause="infrastructure")

    async def _answer(self, first: Any, context: Context) -> Any:
        try:
            answer = self.function(*(first, context)[: self._arguments])
            return await answer if inspect.isawaitable(answer) else answer
        except BudgetExhausted:  # nobody was asked: the trace is left for later
            raise
        except Exception as error:  # whatever a user's function raises is its own failure, and never the policy's
            return _Failed(f"it raised {type(error).__name__}: {error_text(error)}")

    def _component(self, answer: Any) -> Component:
        if isinstance(answer, _Failed):
            return self.null(answer.why)
        if isinstance(answer, Component):  # under this reward's name and version, which are the stored ones
            cause = answer.cause or ("infrastructure" if answer.value is None else None)
            return replace(answer, name=self.name, version=self.version, cause=cause)
        if answer is None:
            return self.null("it could not tell")
        try:  # bools, ints, and the scalars of numpy and torch
            value = float(answer) if not isinstance(answer, str | bytes) else math.nan
        except (TypeError, ValueError):
            value = math.nan
        if not (math.isfinite(value) and 0 <= value <= 1):
            return self.null(f"it answered {_shown(answer)}; expected a number in [0, 1], true, false or None")
        return Component(name=self.name, version=self.version, value=value)


@dataclass(frozen=True)
class _Failed:
    why: str


def as_component(
    reward: Reward | RewardComponent, *, name: str | None = None, version: str | None = None
) -> RewardComponent:
    """The reward as a RewardComponent, to give it a name and a version of your own.

    Args:
        reward: A function or an object that is called with a trace, or with a trace and its Context (see
            RewardComponent). With an attribute `of_group` that is true it is called with a group's traces.
        name: None: the reward's `name`, else the function's or the class's.
        version: None: the reward's `version`, else a hash of its source. What it closes over is not seen: give a
            version where that can change the value.

    Raises:
        ChecklistError: It cannot be called, takes neither one nor two arguments, or has neither a version nor a source.

    >>> from cm2_agent.rewards import as_component
    >>> def brief(trace):
    ...     return len(trace.steps) <= 4
    >>> component = as_component(brief, version="2")
    >>> component.name, component.version
    ('brief', '2')
    """
    if isinstance(reward, RewardComponent):
        return (
            reward
            if name is None and version is None
            else RewardComponent(
                reward.function, name=name or reward.name, version=version or reward.version, of_group=reward.of_group
            )
        )
    if not callable(reward):
        raise ChecklistError(
            f"a reward is {_shown(reward)}; expected a function of a trace (or of a trace and its context)"
        )
    called = str(name or getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__)
    stated = version or getattr(reward, "version", None)
    if stated is None:
        source = reward if inspect.isroutine(reward) else type(reward)
        stated = content_hash(function_source(source))[:12]
    return RewardComponent(reward, name=called, version=str(stated), of_group=bool(getattr(reward, "of_group", False)))


def _positional(function: Callable[..., Any]) -> int:
    """How many of (trace, context) the function takes: 1 or 2."""
    parameters = list(inspect.signature(function).parameters.values())
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = [one for one in places if one.default is one.empty]
    named = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    many = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    if named or len(needed) > 2 or not (places or many):
        what = getattr(function, "__name__", type(function).__name__)
        given = ", ".join(map(str, parameters))
        raise ChecklistError(f"the reward {what!r} has the arguments ({given}); expected (trace) or (trace, context)")
    # a second argument with a default that is called `context` is meant for us; another is the function's own setting
    return 2 if len(needed) == 2 or (len(places) > 1 and places[1].name == "context") or (many and not places) else 1


def _shown(value: object) -> str:
    return f"{type(value).__name__} {shorten(repr(value), 60)}"


__all__ = ["Context", "RewardComponent", "as_component"]
