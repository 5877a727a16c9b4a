"""JudgeRetries: traces at which the judge failed are scored again later in the same pass, other traces between."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from cm2_agent.rewards.judges.judge_pass import JudgePass
from cm2_agent.rewards.judges.trace_failures import ATTEMPTS
from cm2_agent.runner.concurrency import as_they_finish
from cm2_agent.runner.rollout import Result
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import GatedScorer
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

_BETWEEN = 8
"""Attempts at other traces before one is tried again while there are still new traces."""
_MOST = 10_000
"""Traces that are held for another attempt; further ones stay pending."""

Scored = tuple[Trace, Score]


class JudgeRetries:
    """One pass over traces. `score` gives a trace's score; where the judge fails at it, it is scored again after others
    were, and at the end of the pass; a failure that follows the trace then becomes its own (docs/method.md §4).

    At the end nothing may be left to judge between two attempts. Then a trace that the judge could judge is shown to it
    once more, past the caches, to see whether it answers at all; its score stays as it is. That takes up to three
    traces' calls a pass, and is left out where the other traces are too few, or fail too often, to tell anything."""

    def __init__(self, score: Callable[[Trace], Awaitable[Score]]) -> None:
        self._score = score
        self._pass = JudgePass()
        self._held: OrderedDict[str, Trace] = OrderedDict()
        self._due: OrderedDict[str, tuple[int, Trace]] = OrderedDict()
        self._answered = 0
        self._healthy: Trace | None = None

    async def attempt(self, trace: Trace) -> Scored:
        """The trace's score as of this attempt."""
        with self._pass.attempt([trace.id]):
            score = await self._score(trace)
        failures = self._pass.failures
        if not self._pass.is_failing(trace.id):
            self._held.pop(trace.id, None)
            if failures.attempts(trace.id):
                self._healthy = trace
                self._answered += 1
        elif trace.id in self._held or len(self._held) < _MOST:
            self._held[trace.id] = trace
            if failures.attempts(trace.id) < ATTEMPTS:
                self._due[trace.id] = self._answered, trace
        return trace, score

    def is_held(self, trace: Trace) -> bool:
        """Whether the trace is scored once more in this pass."""
        return trace.id in self._held

    def jobs(self, traces: Iterator[Trace]) -> Iterator[Coroutine[Any, Any, Scored]]:
        """Attempts at the traces, and between them further ones at those that failed."""
        return _Jobs(self, traces)

    def due(self) -> Trace | None:
        """A trace to be tried again by now."""
        name, (answered, trace) = next(iter(self._due.items()), ("", (self._answered, None)))
        if trace is None or self._answered - answered < _BETWEEN:
            return None
        del self._due[name]
        return trace

    async def rest(self, at_a_time: int) -> AsyncGenerator[list[Scored], None]:
        """The end of the pass: further attempts at what is held, then its scores. A score's `usage` is what was spent
        here. Raises BudgetExhausted where the judge may not be asked any more."""
        failures = self._pass.failures
        self._due.clear()
        last: dict[str, Scored] = {}
        while self._held and await self._is_followed():
            again = [trace for name, trace in self._held.items() if failures.attempts(name) < ATTEMPTS]
            if not again:
                break
            async with aclosing(as_they_finish(map(self.attempt, again), at_a_time)) as finishing:
                async for batch in finishing:
                    ended = [(trace, _with_usage(score, last.get(trace.id))) for trace, score in batch]
                    last.update({trace.id: (trace, score) for trace, score in ended})
                    recovered = [one for one in ended if not self.is_held(one[0])]
                    if recovered:
                        yield recovered
        for name, trace in list(self._held.items()):
            if self._pass.blame(name):
                _, score = await self.attempt(trace)
                yield [(trace, _with_usage(score, last.get(name)))]
            elif name in last:
                yield [last[name]]

    async def _is_followed(self) -> bool:
        """Whether the judge has answered on another trace since the last attempt at each that is held; where it may
        tell something, it is asked. False where no further attempt is worth it."""
        failures = self._pass.failures
        followed = all(map(failures.is_followed, self._held))
        if not any(failures.may_be_blamed(name, more=ATTEMPTS) for name in self._held):
            return followed and all(failures.attempts(name) < 2 for name in self._held)
        if followed or self._healthy is None:
            return followed
        with self._pass.attempt([self._healthy.id], anew=True):
            await self._score(self._healthy)
        return all(map(failures.is_followed, self._held))


def _with_usage(score: Score, earlier: Scored | None) -> Score:
    return score if earlier is None else replace(score, usage=summed(earlier[1].usage, score.usage))


def summed(one: Mapping[str, JSON], other: Mapping[str, JSON]) -> dict[str, JSON]:
    """What both took, as `Score.usage` has it; None where one does not know."""
    both = {name: (one.get(name, 0), other.get(name, 0)) for name in [*one, *other]}
    return {name: None if None in pair else pair[0] + pair[1] for name, pair in both.items()}


class _Jobs(Iterator[Coroutine[Any, Any, Scored]]):
    def __init__(self, retries: JudgeRetries, traces: Iterator[Trace]) -> None:
        self._retries, self._traces = retries, traces

    def __next__(self) -> Coroutine[Any, Any, Scored]:
        trace = self._retries.due()
        return self._retries.attempt(next(self._traces) if trace is None else trace)


class RetryingScorer:
    """A scorer of rollouts whose calls are attempts of one pass; `settled` ends it. Gates are asked as they are."""

    def __init__(self, scorer: GatedScorer) -> None:
        self._scorer = scorer
        self._tasks: dict[str, Task | None] = {}
        self._retries = JudgeRetries(self._of)

    @property
    def version(self) -> str:
        return self._scorer.version

    @property
    def checklist(self) -> Checklist | None:
        return self._scorer.checklist

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        self._tasks[trace.id] = task
        return (await self._retries.attempt(trace))[1]

    async def gate(self, trace: Trace, turn: int, task: Task | None = None) -> bool | None:
        return await self._scorer.gate(trace, turn, task)

    def gate_hash(self, task: Task | None = None) -> str | None:
        return self._scorer.gate_hash(task)

    async def settled(
        self,
        results: AsyncGenerator[Result, None],
        save: Callable[[list[Scored]], Awaitable[None]],
        *,
        at_a_time: int,
        in_order: bool,
    ) -> AsyncIterator[Result]:
        """The results; those at which the judge failed come at the end, with the score that they have then, which
        `save` gets where it has changed. With `in_order`, what follows them waits too."""
        waiting: dict[str, Result] = {}
        async with aclosing(results) as finishing:
            async for trace, score in finishing:
                if self._retries.is_held(trace) or (in_order and waiting):
                    waiting[trace.id] = trace, score
                else:
                    yield trace, score
        async with aclosing(self._retries.rest(at_a_time)) as finishing:
            async for batch in finishing:
                await save(batch)
                waiting.update({trace.id: (trace, score) for trace, score in batch})
        for one in waiting.values():
            yield one

    async def _of(self, trace: Trace) -> Score:
        return await self._scorer(trace, self._tasks.get(trace.id))


__all__ = ["JudgeRetries", "RetryingScorer", "Scored", "summed"]
