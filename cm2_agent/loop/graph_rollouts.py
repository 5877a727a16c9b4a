"""GraphRollouts: a loop's dialogues, held by `run` with a LangGraph agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.runner.rescore import score_traces
from cm2_agent.runner.run import run
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import Judge
from cm2_agent.types.task import Task


@dataclass(kw_only=True)
class GraphRollouts:
    """Runs an agent that is made of the policy's model, in lockstep: the same seed gives the same dialogues.

    Args:
        agent: makes of a chat model a compiled graph, or a function of a task (`graphs.agents`).
        store: where dialogues and scores are stored.
        checklist: scores them; None: each task's own.
        judge: answers the checklist's questions.
        model: settings of the LocalChatModel: temperature, max_tokens.
        options: of `run`, for a seed: tools, allow_real, context, verify, limits.
        concurrency: dialogues that advance together.
    """

    agent: Callable[[Any], Any]
    store: SQLStore
    checklist: Checklist | None = None
    judge: Judge | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    options: Callable[[int], Mapping[str, Any]] = field(default=lambda seed: {})
    concurrency: int = 64
    _runner: asyncio.Runner = field(default_factory=asyncio.Runner, init=False)  # a judge's client stays in one loop

    @property
    def reward(self) -> str:
        return ChecklistScorer(self.checklist, judge=self.judge).version

    def version(self, policy: str) -> str:
        from cm2_agent.models.local import LocalChatModel

        return LocalChatModel.load(policy).model_version

    def hold(
        self, policy: str, tasks: Sequence[Task], *, group: int, seed: int, name: str, advance: Callable[[], object]
    ) -> None:
        from cm2_agent.models.local import LocalChatModel

        model = LocalChatModel.load(policy, **{"max_batch": self.concurrency, **self.model})
        results = run(
            self.agent(model),
            tasks,
            group=group,
            checklist=self.checklist,
            judge=self.judge,
            store=self.store,
            seed=seed,
            name=name,
            lockstep=True,
            concurrency=self.concurrency,
            **self.options(seed),
        )
        self._runner.run(_drained(results, advance))

    def score(self, ids: Sequence[str]) -> None:
        scores = {one.trace_id: one.lower for one in self.store.scores(self.reward, ids=ids)}
        pending = [id for id in ids if id not in scores or (scores[id] is None and self.judge is not None)]
        if pending:
            results = score_traces(self.store.traces(ids=pending), self.checklist, judge=self.judge, store=self.store)
            self._runner.run(_drained(results, lambda: None))

    def close(self) -> None:
        """Close the judge's connections."""
        close: Any = getattr(self.judge, "aclose", None)
        if close is not None:
            self._runner.run(close())
        self._runner.close()


async def _drained(results: AsyncIterator[Any], advance: Callable[[], object]) -> None:
    async for _ in results:
        advance()


__all__ = ["GraphRollouts"]
