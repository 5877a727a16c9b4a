"""The dialogues of one run: each put to the agent, gated, ended, scored and stored; apart from the runner, which refuses what cannot be run
before any of them begins."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cm2_agent.batching import Lockstep
from cm2_agent.messages import JSON
from cm2_agent.middleware import Middleware
from cm2_agent.protocols import GatedScorer, Sink
from cm2_agent.recorder import capture
from cm2_agent.score import Score
from cm2_agent.scoring import cancel
from cm2_agent.task import Task
from cm2_agent.trace import (
    CENSORED_TURN,
    CUT,
    GATE,
    GROUP,
    ROLLOUT,
    TASK_ID,
    TASK_TURNS,
    TASK_VERSION,
    TOOL_BACKENDS,
    Failure,
    Run,
    Trace,
)

if TYPE_CHECKING:
    from cm2_agent.graphs.dialogue import End
    from cm2_agent.store import SQLStore

Result = tuple[Trace, Score | None]
Worlds = Callable[[Task], AbstractContextManager[Any]]
Verify = Callable[[Task, Any, Trace], Mapping[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What all dialogues of one run share."""

    graph: Any
    scorer: GatedScorer
    store: SQLStore | None
    context: Worlds | None
    verify: Verify | None
    allow_real: tuple[str, ...]
    backends: str
    seed: int
    max_steps: int
    name: str
    resumable: bool
    sinks: tuple[Sink, ...]
    runs: dict[str, list[Run]] = field(default_factory=dict)

    async def in_lockstep(self, jobs: Sequence[tuple[Task, int]], concurrency: int) -> AsyncIterator[Result]:
        handler = capture(self._keep)
        for chunk in _batched(jobs, concurrency):
            barrier = Lockstep(len(chunk))

            async def seated(index: int, task: Task, number: int, barrier: Lockstep = barrier) -> Result:
                async with barrier.seat(index, seed=dialogue_seed(self.seed, task.id, number)):
                    return await self._dialogue(handler, task, number)

            running = [asyncio.create_task(seated(index, *job)) for index, job in enumerate(chunk)]
            try:
                for dialogue in running:
                    yield await dialogue
            finally:
                await cancel(running)

    async def as_finished(self, jobs: Sequence[tuple[Task, int]], concurrency: int) -> AsyncIterator[Result]:
        handler = capture(self._keep)
        waiting = iter(jobs)
        running: set[asyncio.Task[Result]] = set()
        try:
            while True:
                for task, number in itertools.islice(waiting, concurrency - len(running)):
                    running.add(asyncio.create_task(self._dialogue(handler, task, number)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for dialogue in done:
                    yield dialogue.result()
        finally:
            await cancel(running)

    def _keep(self, run: Run) -> None:
        self.runs.setdefault(run.trace_id, []).append(run)

    async def _dialogue(self, handler: Any, task: Task, number: int) -> Result:
        from cm2_agent.graphs.dialogue import converse
        from cm2_agent.graphs.tools import RealToolGuard

        thread = f"{self.name}/{task.id}@{task.version}/{number}"
        if self.resumable and self.store is not None and (stored := self.store.trace(thread)) is not None:
            return stored, self.store.score(thread)
        guard = RealToolGuard(self.allow_real)
        strict = self.scorer.gate_hash(task)
        metadata: dict[str, JSON] = {
            TASK_ID: task.id, TASK_VERSION: task.version, ROLLOUT: number, GROUP: self.name, TOOL_BACKENDS: self.backends,
            TASK_TURNS: task.scripted_turns, **({} if strict is None else {GATE: strict}),
        }  # fmt: skip
        config = {"configurable": {"thread_id": thread}, "metadata": metadata, "callbacks": [handler, guard]}

        async def gate(turn: int) -> bool | None:
            return await self.scorer.gate(Trace(id=thread, runs=tuple(self.runs.get(thread, ()))), turn, task)

        with self.context(task) if self.context is not None else nullcontext() as world:
            end = await converse(
                self.graph, task, config=config, context=world, gate=gate if strict else None, max_steps=self.max_steps
            )
            runs = _ended(self.runs.pop(thread, []), thread, metadata, end, guard.stopped)
            outcomes = {} if self.verify is None else dict(self.verify(task, world, Trace(id=thread, runs=tuple(runs))))
        return await Middleware(self.store, self.scorer, self.sinks).process(runs, task=task, outcomes=outcomes)


def dialogue_seed(seed: int, task: str, number: int) -> int:
    """The seed of one dialogue's random stream: the same for the same run seed, task and number, whatever runs beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{task}:{number}".encode()).digest()[:8], "big") >> 1


def _ended(runs: list[Run], thread: str, metadata: Mapping[str, JSON], end: End, stopped: set[str]) -> list[Run]:
    """The runs with what only the end of the dialogue told: the gate's turn, the limit that cut it, the error nobody recorded."""
    if not runs:
        runs = [Run(id=f"{thread}#0", thread=thread, attributes=dict(metadata), status="error")]
    last = runs[-1]
    added: dict[str, JSON] = {}
    if end.how == "gate":
        added[CENSORED_TURN] = end.turn
    elif end.how in {"steps", "verdict"}:
        added[CUT] = end.how
    if end.how == "steps":  # a limit is ours, not the agent's failure: its unreached items count as unpaid
        last = replace(last, status="ok", failure=None)
    elif stopped:
        last = replace(last, status="error", failure=Failure(kind="ToolError", message=f"not allowed: {', '.join(sorted(stopped))}"))
    elif end.how == "error" and last.failure is None:
        last = replace(last, status="error", failure=Failure(kind=type(end.error).__name__, message=str(end.error)[:500]))
    return [*runs[:-1], replace(last, attributes={**last.attributes, **added})]


def _batched(jobs: Sequence[tuple[Task, int]], size: int) -> Iterable[tuple[tuple[Task, int], ...]]:
    return (tuple(jobs[start : start + size]) for start in range(0, len(jobs), size))


__all__ = ["Result", "Rollouts", "Verify", "Worlds", "dialogue_seed"]
