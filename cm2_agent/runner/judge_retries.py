"""JudgeRetries: traces at which the judge or a check failed are scored again later in the pass, others between."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from cm2_agent.rewards.judges.judge_pass import JudgePass, Source
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
    """One pass over traces. `score` gives a trace's score; where the judge or a check fails at it, it is scored again
    after others were, and at the end of the pass; a failure that follows the trace then becomes its own
    (docs/method.md §4).

    At the end nothing may be left to judge between two attempts. Then a trace that the judge could judge is shown to it
    once more, past the caches, to see whether it answers at all; its score stays as it is (a check is asked without the
    judge). That takes up to three traces' calls a pass, and is left out where the other traces are too few, or fail too
    often, to tell anything."""

    def __init__(self, score: Callable[[Trace], Awaitable[Score]]) -> None:
        self._score = score
        self._pass = JudgePass()
        self._held: OrderedDict[str, Trace] = OrderedDict()
        self._due: OrderedDict[str, tuple[int, Trace]] = OrderedDict()
        self._answered = 0
        self._healthy: dict[Source, Trace] = {}

    async def attempt(self, trace: Trace) -> Scored:
        """The trace's score as of this attempt."""
        with self._pass.attempt([trace.id]):
            score = await self._score(trace)
        answered = [source for source, failures in self._pass.failures.items() if failures.has_answered(trace.id)]
        self._healthy.update(dict.fromkeys(answered, trace))
        if not self._pass.is_failing(trace.id):
            self._held.pop(trace.id, None)
            self._answered += bool(answered)
        elif trace.id in self._held or len(self._held) < _MOST:
            self._held[trace.id] = trace
            if self._is_open(trace.id, self._pass.failing(trace.id)):
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
        self._due.clear()
        last: dict[str, Scored] = {}
        for _ in range(ATTEMPTS):  # the last time around nothing is left to try, but the last attempts are followed
            followed = [source for source in self._failing() if await self._is_followed(source)]
            again = [trace for name, trace in self._held.items() if self._is_open(name, followed)]
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

    def _failing(self) -> list[Source]:
        """The judges and checks that fail at a trace which is held."""
        return list(dict.fromkeys(source for name in self._held for source in self._pass.failing(name)))

    def _is_open(self, name: str, sources: Iterable[Source]) -> bool:
        """Whether one of the judges and checks fails at the trace and was not tried K times."""
        tried = (self._pass.failures[source] for source in sources)
        return any(failures.failing(name) and failures.attempts(name) < ATTEMPTS for failures in tried)

    async def _is_followed(self, source: Source) -> bool:
        """Whether the judge or check has answered on another trace since its last attempt at each that is held for it;
        where it may tell something, it is asked. False where no further attempt is worth it."""
        failures = self._pass.failures[source]
        held = [name for name in self._held if failures.failing(name)]
        followed = all(map(failures.is_followed, held))
        if not any(failures.may_be_blamed(name, more=ATTEMPTS) for name in held):
            return followed and all(failures.attempts(name) < 2 for name in held)
        healthy = self._healthy.get(source)
        if followed or healthy is None:
            return followed
        with self._pass.attempt([healthy.id], anew=True, judged=source not in self._pass.checks):
            await self._score(healthy)
        return all(map(failures.is_followed, held))


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
