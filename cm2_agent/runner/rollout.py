"""The rollouts of one run: each dialogue is held with the agent, gated, scored and stored."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, SupportsFloat

from cm2_agent.errors import BudgetExhausted, ClaimLost, ToolError
from cm2_agent.models.batching import Lockstep
from cm2_agent.online.middleware import Middleware
from cm2_agent.runner.concurrency import cancel
from cm2_agent.runner.resume import ResumableRuns, is_resumable
from cm2_agent.runner.same_run import require_same_run
from cm2_agent.runner.sharing import POLL, Job, Jobs, OwnJobs, SharedJobs
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import GatedScorer, Sink, User
from cm2_agent.types.run import Run, RunFailure
from cm2_agent.types.run_attributes import (
    CENSORED_TURN,
    CRASH,
    CUT,
    GATE,
    GROUP,
    ROLLOUT,
    TASK_ID,
    TASK_TURNS,
    TASK_VERSION,
)
from cm2_agent.types.score import Score
from cm2_agent.types.secrets import error_text
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    from cm2_agent.graphs.conversation_setup import Ending, RolloutLimits
    from cm2_agent.redaction.redactor import Redactor
    from cm2_agent.store import SQLStore

Result = tuple[Trace, Score | None]
Worlds = Callable[[Task], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]
Verify = Callable[[Task, Any, Trace], Mapping[str, float | None]]


@dataclass(kw_only=True)
class Rollouts:
    """What all dialogues of one run share, and who conducts them.

    For each dialogue, `graph(task)` is the agent, `attributes(task)` gives what its traces say beside task and rollout,
    `user(task)` who speaks (None: the task's own turns), `context(task)` opens a world (LangGraph's runtime context),
    and `backends(task, thread, number)` makes what stands in the graph's configurable as `cm2_tools`: its attribute
    `failure` tells of what failed and was not the agent's doing, which makes the reward NULL (BudgetExhausted: the
    dialogue is not stored, and raised).

    A `resumable` run with a store saves each dialogue's state there after every turn. Run again under its name, it goes
    on from there, and what is stored is not run again, nor taken for its own where it is another run's. A dialogue
    whose world or backends cannot be resumed (they need `state()`, which gives JSON, and `restore(state)`) begins
    again; so does every unfinished one with `redact`, which replaces personal data in the runs and tasks before
    anything is scored, stored or sent. Several processes may do such a run: each dialogue is held by one of them, and
    with `shard` the results are this one's alone.
    """

    graph: Callable[[Task], Any]
    scorer: GatedScorer
    store: SQLStore | None = None
    context: Worlds | None = None
    verify: Verify | None = None
    backends: Callable[[Task, str, int], Any] | None = None
    user: Callable[[Task], User | None] | None = None
    attributes: Callable[[Task], Mapping[str, JSON]] = field(default=lambda task: {})
    allow_real: tuple[str, ...] = ()
    limits: RolloutLimits | None = None
    seed: int = 0
    name: str
    resumable: bool = False
    shard: bool = False
    sinks: tuple[Sink, ...] = ()
    redact: Redactor | None = None
    runs: dict[str, list[Run]] = field(default_factory=dict, init=False)
    _handler: Any = field(default=None, init=False)
    _resumable: ResumableRuns | None = field(default=None, init=False)
    _redacted: dict[tuple[str, int], Task] = field(default_factory=dict, init=False)

    async def in_lockstep(self, jobs: Sequence[Job], concurrency: int) -> AsyncGenerator[Result, None]:
        """`concurrency` dialogues at a time, in step; results in the order of the jobs.

        A dialogue that is resumed goes on in its random stream where the calls of its finished turns left it; only what
        it is batched with differs from a run that was not cut short."""
        shared = self._prepare(jobs)
        ready: dict[str, Result] = {}
        order = deque(self._thread(job) for job in jobs)
        running: list[asyncio.Task[Result | None]] = []
        try:
            while shared.left:
                chunk = shared.take(concurrency)
                if not chunk:
                    await asyncio.sleep(POLL if shared.waits else 0)
                    continue
                barrier = Lockstep(len(chunk))

                async def seated(index: int, job: Job, barrier: Lockstep = barrier) -> Result | None:
                    async with barrier.seat(index, seed=dialogue_seed(self.seed, job[0].id, job[1])):
                        return await self._dialogue(job, shared)

                running = [asyncio.create_task(seated(index, job)) for index, job in enumerate(chunk)]
                for job, dialogue in zip(chunk, running, strict=True):
                    result = await dialogue
                    if result is None:
                        continue
                    if self.shard:
                        yield result
                        continue
                    ready[self._thread(job)] = result
                    while order and order[0] in ready:  # what follows another process's dialogue waits for it
                        yield ready.pop(order.popleft())
        finally:
            await cancel(running)
            shared.close()

    async def as_finished(self, jobs: Sequence[Job], concurrency: int) -> AsyncGenerator[Result, None]:
        """`concurrency` dialogues at a time; results as they come."""
        shared = self._prepare(jobs)
        running: set[asyncio.Task[Result | None]] = set()
        try:
            while True:
                for job in shared.take(concurrency - len(running)):
                    running.add(asyncio.create_task(self._dialogue(job, shared)))
                if not running and not shared.left:
                    return
                if not running:
                    await asyncio.sleep(POLL)
                    continue
                patience = POLL if shared.waits and len(running) < concurrency else None
                done, running = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for dialogue in done:
                    result = dialogue.result()
                    if result is not None:
                        yield result
        finally:
            await cancel(running)
            shared.close()

    def _prepare(self, jobs: Sequence[Job]) -> Jobs:
        self._handler = capture(self._add, redactor=self.redact)
        if self.store is None or not self.resumable:
            return OwnJobs(jobs)
        if self.redact is None:
            self._resumable = ResumableRuns(self.store, f"{self.name}/")
        seen = self._require_same_run if self.shard else None
        return SharedJobs(self.store, jobs, self._thread, left_out=seen)

    def _thread(self, job: Job) -> str:
        task, number = job
        return f"{self.name}/{task.id}@{task.version}/{number}"

    def _add(self, run: Run) -> None:
        earlier = self.runs.setdefault(run.trace_id, [])
        earlier.append(replace(run, history=()) if earlier else run)  # a trace holds each message once

    def _facts(self, job: Job) -> dict[str, JSON]:
        """What the traces of a rollout say of it."""
        task, number = job
        strict = self.scorer.gate_hash(self._shown(task))
        turns = task.scripted_turns
        return {
            TASK_ID: task.id,
            TASK_VERSION: task.version,
            ROLLOUT: number,
            GROUP: self.name,
            **self.attributes(task),
            **({} if turns is None else {TASK_TURNS: turns}),
            **({} if strict is None else {GATE: strict}),
        }

    def _require_same_run(self, job: Job) -> Trace:
        """The stored dialogue of a rollout. Raises TaskError where another run of this name held it."""
        assert self.store is not None
        stored = self.store.trace(self._thread(job))
        assert stored is not None
        require_same_run(stored, self._facts(job), self.name)
        return stored

    async def _dialogue(self, job: Job, shared: Jobs) -> Result | None:
        """None where the rollout is another process's after all."""
        (task, number), thread = job, self._thread(job)
        shown, facts = self._shown(task), self._facts(job)
        if self.resumable and self.store is not None and self.store.holds(thread):
            stored = self._require_same_run(job)
            if self._resumable is not None:
                self._resumable.forget(thread)
            return (stored, self.store.score(thread)) if shared.is_wanted(thread) else None
        if self._resumable is not None and shared.is_taken_over(thread):
            self._resumable.take_over(thread)
        outcomes: Mapping[str, float | None] = {}
        runs: list[Run] = []
        held = False
        try:
            async with AsyncExitStack() as opened:
                try:
                    world = None if self.context is None else await _enter(opened, self.context(task))
                except Exception as error:  # a world that cannot be opened is this dialogue's end, and no other's
                    runs = self._end([], thread, facts, _failed("the dialogue's world could not be opened", error))
                else:
                    runs = await self._converse(task, number, thread, facts, world)
                    if self.verify is not None:
                        try:
                            outcomes = _outcomes(self.verify(task, world, Trace(id=thread, runs=tuple(runs))))
                        except BudgetExhausted:
                            raise
                        except (Exception, SystemExit) as error:  # as with the world: its own dialogue's end
                            runs = self._end(runs, thread, facts, _failed("the verifier raised", error))
                held = True
        except Exception as error:
            if not held or isinstance(error, BudgetExhausted):
                raise
            runs = self._end(runs, thread, facts, _failed("the dialogue's world could not be closed", error))
        saving = Middleware(self.store, self.scorer, self.sinks)
        try:
            result = await saving.process(runs, task=shown, outcomes=outcomes, claim=shared.claim(thread))
        except ClaimLost:
            shared.lost(job)
            return None
        shared.done(thread)
        if self._resumable is not None:
            self._resumable.forget(thread)
        return result

    def _shown(self, task: Task) -> Task:
        """The task as scorer and store see it."""
        if self.redact is None:
            return task
        from cm2_agent.redaction.redacted_task import redacted_task

        key = (task.id, task.version)
        if key not in self._redacted:
            self._redacted[key] = redacted_task(task, self.redact)
        return self._redacted[key]

    def _end(self, runs: list[Run], thread: str, facts: Mapping[str, JSON], end: Ending) -> list[Run]:
        ended = _ended(runs, thread, facts, end)
        if self.redact is None:
            return ended
        from cm2_agent.redaction.redacted_run import redacted_run

        return [*ended[:-1], redacted_run(ended[-1], self.redact)]  # the failure was added to it

    async def _converse(self, task: Task, number: int, thread: str, facts: Mapping[str, JSON], world: Any) -> list[Run]:
        from cm2_agent.graphs.conversation import converse
        from cm2_agent.graphs.conversation_setup import ConversationSetup, RolloutLimits
        from cm2_agent.graphs.interception.real_tool_guard import RealToolGuard

        guard = RealToolGuard(self.allow_real)
        try:
            graph = self.graph(task)
            tools = None if self.backends is None else self.backends(task, thread, number)
            user = None if self.user is None else self.user(task)
        except BudgetExhausted:
            raise
        except Exception as error:  # as with the world: its own dialogue's end
            return self._end([], thread, facts, _failed("the dialogue's agent, tools or user could not be made", error))
        strict, shown = facts.get(GATE), self._shown(task)

        async def gate(turn: int) -> bool | None:
            return await self.scorer.gate(Trace(id=thread, runs=tuple(self.runs.get(thread, ()))), turn, shown)

        def failed() -> Exception | None:
            if guard.stopped:
                return ToolError(f"not allowed: {', '.join(sorted(guard.stopped))}")
            failure: Exception | None = getattr(tools, "failure", None)
            return failure

        setup = ConversationSetup(
            graph=graph,
            task=task,
            context=world,
            gate=gate if strict else None,
            limits=self.limits or RolloutLimits(),
            failed=failed,
            user=user,
            answerable=False,
            config={
                "configurable": {"thread_id": thread, **({} if tools is None else {"cm2_tools": tools})},
                "metadata": dict(facts),
                "callbacks": [self._handler, guard],
            },
        )
        parts = [*([] if self.context is None else [world]), *([] if tools is None else [tools])]
        if self._resumable is not None and all(is_resumable(part) for part in parts):
            end = await self._resumable.converse(setup, facts, parts, self.runs)
        else:
            end = await converse(setup)
        return self._end(self.runs.pop(thread, []), thread, facts, end)


async def _enter(opened: AsyncExitStack, world: AbstractContextManager[Any] | AbstractAsyncContextManager[Any]) -> Any:
    if isinstance(world, AbstractAsyncContextManager):
        return await opened.enter_async_context(world)
    return opened.enter_context(world)


def dialogue_seed(seed: int, task: str, number: int) -> int:
    """The seed of one dialogue's random stream: the same for the same run seed, task and number, whatever runs beside
    it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{task}:{number}".encode()).digest()[:8], "big") >> 1


def _outcomes(found: Any) -> dict[str, float | None]:
    """What a verifier returned, once it is what outcomes are. Raises ValueError."""
    if not isinstance(found, Mapping):
        raise ValueError(f"the outcomes are a {type(found).__name__}; expected a mapping of names to numbers or None")
    outcomes: dict[str, float | None] = {}
    for name, value in found.items():
        number = float(value) if isinstance(value, SupportsFloat) else None
        known = value is None or (number is not None and math.isfinite(number))
        if not isinstance(name, str) or not name or not known:
            raise ValueError(f"the outcome {name!r} is {value!r:.80}; expected a name with a finite number or None")
        outcomes[name] = number
    return outcomes


def _failed(what: str, error: BaseException) -> Ending:
    from cm2_agent.graphs.conversation_setup import Ending

    problem = f"{what}: {type(error).__name__}: {error_text(error, 500)}"
    return Ending(reason="error", turn=0, failure=RunFailure(kind="ToolError", message=problem))


def _ended(runs: list[Run], thread: str, facts: Mapping[str, JSON], end: Ending) -> list[Run]:
    """The runs with what only the end of the dialogue shows: the gate's turn, the limit that cut it, the error nobody
    recorded."""
    if not runs:
        runs = [Run(id=f"{thread}#0", thread=thread, attributes=dict(facts), status="error")]
    last = runs[-1]
    added: dict[str, JSON] = {}
    if end.reason == "gate":
        added[CENSORED_TURN] = end.turn
    elif end.reason not in {"done", "error"}:
        added[CUT] = CRASH if end.reason == "crash" else end.reason
    # a limit is no failure: what it cut off counts as unpaid
    if end.reason in {"steps", "time", "tokens", "context"}:
        last = replace(last, status="ok", failure=None)
    elif end.failure is not None and (last.failure is None or end.failure.kind == "ToolError"):
        last = replace(last, status="error", failure=end.failure)
    return [*runs[:-1], replace(last, attributes={**last.attributes, **added})]


__all__ = ["Result", "Rollouts", "Verify", "Worlds", "dialogue_seed"]
