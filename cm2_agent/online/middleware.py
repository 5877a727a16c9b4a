"""What stands between runs and a store: a scorer, and sinks that are notified of each score."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from cm2_agent.errors import StoreError
from cm2_agent.incidents import Incidents
from cm2_agent.types.protocols import Scorer, Sink, Store
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

__all__ = ["Middleware"]


class Middleware:
    """Store, scorer and sinks. Any of the three may be missing: nothing is scored without a scorer, saved without a
    store, or sent without sinks. `process` takes a rollout that is finished; a watched graph's runs are saved and
    scored on paths of their own (`Saver`, `ScoringPath`), which use the three.

    >>> import asyncio
    >>> received = []
    >>> middleware = Middleware(None, sinks=[lambda trace, score: received.append(trace.id)])
    >>> asyncio.run(middleware.process([Run(id="r1")]))[0].id, received
    ('r1', ['r1'])
    """

    def __init__(
        self,
        store: Store | None = None,
        scorer: Scorer | None = None,
        sinks: Sequence[Sink] = (),
        incidents: Incidents | None = None,
    ) -> None:
        self.store = store
        self.scorer = scorer
        self.sinks = tuple(sinks)
        self.incidents = incidents if incidents is not None else Incidents()

    async def process(
        self,
        runs: Sequence[Run],
        task: Task | None = None,
        score: Score | None = None,
        outcomes: Mapping[str, float | None] | None = None,
        claim: Any = None,
    ) -> tuple[Trace, Score | None]:
        """Take a finished dialogue: its runs, in order, all of one trace. `score` is taken as it is; without one the
        scorer is asked. A `claim` (`store.claims`) is given back as the dialogue is saved.

        One transaction, where the store has `save_dialogue`. Raises StoreError, and whatever the scorer raises, after
        the runs were saved. A sink that fails is counted in `incidents`."""
        if not runs:
            raise StoreError("there are no runs to process; expected the runs of one dialogue, at least one")
        trace = Trace(id=runs[0].trace_id, runs=tuple(runs), outcomes=dict(outcomes or {}))
        failed: Exception | None = None
        if score is None and self.scorer is not None:
            try:
                score = await self.scorer(trace, task)
            except Exception as error:  # raised below: the runs are saved whether or not they can be scored
                failed = error
        self._save(trace, score, {} if claim is None else {"claim": claim})
        if failed is not None:
            raise failed
        await self.notify(trace, score)
        return trace, score

    async def notify(self, trace: Trace, score: Score | None) -> None:
        """Call every sink, whether or not another fails."""
        for sink in self.sinks:
            try:
                answer = sink(trace, score)
                if inspect.isawaitable(answer):
                    await answer
            except Exception as error:
                self.incidents.add(f"a sink failed: {getattr(sink, '__name__', type(sink).__name__)}", error)

    def _save(self, trace: Trace, score: Score | None, claim: Mapping[str, Any]) -> None:
        if self.store is None:
            return
        save: Any = getattr(self.store, "save_dialogue", None)
        if callable(save):
            save(trace.runs, score=score, outcomes=trace.outcomes, **claim)
            return
        if trace.outcomes:
            raise StoreError(
                f"a {type(self.store).__name__} cannot store the outcomes {sorted(trace.outcomes)}; expected a store"
                " with save_dialogue"
            )
        for run in trace.runs:
            self.store.save_run(run)
        if score is not None:
            self.store.save_score(score)
