"""The scorer of a watched graph: the checklist for every trace, judge and further components for a sample of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cm2_agent.errors import BudgetExhausted, JudgeError, JudgeRefused
from cm2_agent.incidents import Incidents
from cm2_agent.online.sampling import is_drawn
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    from cm2_agent.rewards.components.component import RewardComponent
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

_OVERRUNS = 2
"""How often in a row a check may run out of time before it rests."""
_AT_A_TIME = 8
"""Traces that judge and further rewards are asked about at a time."""


class JudgeBudget:
    """Whether the judge may still be asked, by the US dollars it has spent; a judge that `holds_itself` to its budget
    is always asked, and raises BudgetExhausted."""

    def __init__(self, judge: Any, budget_usd: float | None, *, holds_itself: bool) -> None:
        self._judge, self._budget_usd, self._holds_itself = judge, budget_usd, holds_itself

    def is_left(self) -> bool:
        if self._judge is None or self._budget_usd is None:
            return False
        if self._holds_itself or not hasattr(self._judge, "spent_usd"):
            return True
        spent = self._judge.spent_usd
        if self._budget_usd == 0:  # for a judge that costs nothing
            return spent == 0 and bool(getattr(self._judge, "is_free", True))
        return spent is not None and spent < self._budget_usd


class LiveScorer:
    """Scores with `judged` the share `sample` (0…1) of the traces, drawn by trace id, as long as the budget lasts, and
    the rest with `programmatic`. `rewards` become components of the sampled traces' scores. Checks that run out of time
    again and again rest, so that they hold up nothing else."""

    def __init__(
        self,
        programmatic: ChecklistScorer,
        judged: ChecklistScorer,
        rewards: Sequence[RewardComponent],
        sample: float,
        budget: JudgeBudget,
    ) -> None:
        self._programmatic, self._judged, self._rewards = programmatic, judged, rewards
        self._sample, self._budget = sample, budget
        self._asks = judged is not programmatic or bool(rewards)
        self._asking = asyncio.Semaphore(_AT_A_TIME)
        for scorer in (programmatic, judged):
            scorer.limits.rest_after = _OVERRUNS
        self.incidents = Incidents()

    @property
    def incidents(self) -> Incidents:
        """Where failures are counted, those of checks too."""
        return self._programmatic.limits.incidents

    @incidents.setter
    def incidents(self, incidents: Incidents) -> None:
        for scorer in (self._programmatic, self._judged):
            scorer.limits.incidents = incidents

    @property
    def version(self) -> str:
        return self._judged.version

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        drawn = is_drawn(trace.id, self._sample)
        if not drawn or not self._asks:
            return await self._programmatic(trace, task)
        async with self._asking:
            return await self._ask(trace, task)

    async def _ask(self, trace: Trace, task: Task | None) -> Score:
        try:
            score = await (self._judged if self._budget.is_left() else self._programmatic)(trace, task)
        except JudgeRefused as error:  # the application goes on, and `cm2 score` judges the trace later
            self.incidents.add("the judge is refused by its provider: its key, the model's name or its credit", error)
            score = await self._programmatic(trace, task)
        except BudgetExhausted as error:
            self.incidents.add("the judge's budget did not suffice for a trace", error)
            score = await self._programmatic(trace, task)
        if not self._rewards:
            return score
        values = {reward.name: await self._value(reward, trace, task) for reward in self._rewards}
        return replace(score, components={**score.components, **values})

    async def _value(self, reward: RewardComponent, trace: Trace, task: Task | None) -> float | None:
        from cm2_agent.rewards.components.component import Context

        try:
            component = await reward(trace, Context(task=task))
        except JudgeRefused as error:
            self.incidents.add(f"the judge of the reward {reward.name} is refused by its provider", error)
            return None
        except BudgetExhausted as error:
            self.incidents.add(f"the reward {reward.name} has no budget left", error)
            return None
        if component.value is None:
            self.incidents.add(f"the reward {reward.name} gave no value", JudgeError(component.explanation))
        return component.value
