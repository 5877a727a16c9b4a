"""Running an agent on tasks and scoring what is stored: the introducer of graphs, rewards and middleware to each other."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cm2_agent.batching import Lockstep
from cm2_agent.checklist import Checklist
from cm2_agent.errors import BudgetExhausted, StoreError, TaskError
from cm2_agent.group import group_key
from cm2_agent.messages import JSON, canonical_json
from cm2_agent.middleware import Middleware
from cm2_agent.protocols import GatedScorer, GroupScorer, Judge, Scorer, Sink
from cm2_agent.recorder import capture
from cm2_agent.score import Score
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

T = TypeVar("T")
Result = tuple[Trace, Score | None]
Worlds = Callable[[Task], AbstractContextManager[Any]]
Verify = Callable[[Task, Any, Trace], Mapping[str, float | None]]


def run(
    graph: Any,
    tasks: Iterable[Task],
    *,
    group: int = 1,
    checklist: Checklist | str | None = None,
    judge: Judge | None = None,
    scorer: GatedScorer | None = None,
    store: SQLStore | None = None,
    allow_real: Iterable[str] = (),
    context: Worlds | None = None,
    verify: Verify | None = None,
    concurrency: int = 64,
    lockstep: bool = False,
    seed: int = 0,
    max_steps: int = 24,
    name: str | None = None,
    sinks: Sequence[Sink] = (),
) -> AsyncIterator[Result]:
    """Run the graph `group` times on every task and yield each dialogue's (trace, score).

    `checklist` scores and gates the rollouts (None: each task's own), or `scorer` does in its place: a Stack, say. `context(task)` opens a
    fresh world for a dialogue (LangGraph's runtime context) and closes it whatever happens; `verify(task, world, trace)` tells outcomes
    while it is still open. No real tool is called unless it is named in `allow_real`. `lockstep` makes the run repeatable: `concurrency`
    dialogues advance together, each with a random stream of its own derived from `seed`, its task and its number, and results come in the
    order of the tasks; else they come as they finish. `name` names the run: under the same name, dialogues that the store already holds
    are not run again.

    Raises ToolError for a real tool that is not named, TaskError for tasks that cannot be run, ChecklistError, StoreError. A dialogue
    that fails stops no other: its trace says how it failed and its reward is NULL.
    """
    from cm2_agent.graphs.tools import refuse_unnamed
    from cm2_agent.rewards.scorer import ChecklistScorer, check_trainable

    listed = list(tasks)
    if scorer is not None and (checklist is not None or judge is not None):
        raise TaskError("a scorer was given beside a checklist or a judge; it has its own: give them to the scorer, Stack(checklist, …)")
    if group < 1 or concurrency < 1:
        raise TaskError(f"group is {group} and concurrency {concurrency}; expected 1 or more of each")
    chosen = scorer.checklist if scorer is not None else load(checklist) if isinstance(checklist, str) else checklist
    for task in listed:
        if task.persona is not None or not task.turns:
            raise TaskError(f"task {task.id!r} has no scripted turns; this version runs scripted users: give it `turns`")
        if chosen is not None or task.checklist is not None:
            check_trainable(chosen or task.own_checklist(), task)
    tools = refuse_unnamed(graph, allow_real)
    rollouts = _Rollouts(
        graph=graph, scorer=scorer or ChecklistScorer(chosen, judge=_remembering(judge, store)), store=store, context=context,
        verify=verify, allow_real=tuple(allow_real), backends=canonical_json(dict.fromkeys(sorted(tools), "real")), seed=seed,
        max_steps=max_steps,
        name=name or uuid.uuid4().hex[:12], resumable=name is not None, sinks=tuple(sinks),
    )  # fmt: skip
    if store is not None:
        store.save_tasks(listed)
        for scored in {one.hash: one for one in (chosen, *(task.own_checklist() for task in listed)) if one is not None}.values():
            store.save_checklist(scored)
    jobs = [(task, number) for task in listed for number in range(group)]
    return rollouts.in_lockstep(jobs, concurrency) if lockstep else rollouts.as_finished(jobs, concurrency)


@dataclass(frozen=True, kw_only=True)
class _Rollouts:
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
                await _cancel(running)

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
            await _cancel(running)

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


async def score_traces(
    traces: Iterable[Trace],
    checklist: Checklist | str | None = None,
    *,
    judge: Judge | None = None,
    store: SQLStore | None = None,
    scorer: Scorer | None = None,
    concurrency: int = 64,
) -> AsyncIterator[tuple[Trace, Score]]:
    """Score stored traces and yield each with its score, saved where a store is given. None scores each by its own task's checklist
    (which needs the store).

    With a judge or a scorer of your own, `concurrency` traces are scored at a time and come as they finish; else in their order. A trace
    that cannot be scored stops no other: it stays without a score, and its error is raised when the others are done. Where the judge's
    budget runs out, what is under way is finished as far as it allows, everything else stays without a score, and BudgetExhausted is
    raised; scoring the same traces again goes on from there, and what a cache holds is not asked again. Raises ChecklistError,
    StoreError, BudgetExhausted.
    """
    from cm2_agent.rewards.scorer import ChecklistScorer

    chosen = load(checklist) if isinstance(checklist, str) else checklist
    if chosen is None and store is None and scorer is None:
        raise StoreError("no checklist was given and no store to read the tasks' own from; give score_traces one of the two")
    plug = scorer or ChecklistScorer(chosen, judge=_remembering(judge, store))
    if store is not None and chosen is not None:
        store.save_checklist(chosen)

    async def scored(trace: Trace) -> tuple[Trace, Score]:
        task = store.task(trace.task_id, _version(trace)) if store is not None and trace.task_id is not None else None
        return trace, await plug(trace, task)

    at_a_time = concurrency if judge is not None or scorer is not None else 1
    if at_a_time < 1:
        raise StoreError(f"concurrency is {concurrency}; expected how many traces to score at a time, 1 or more")
    async with aclosing(_as_they_finish(map(scored, traces), at_a_time)) as finishing:
        async for batch in finishing:
            refused: StoreError | None = None
            for trace, score in batch if store is None else _saved(store, batch):
                if isinstance(score, StoreError):
                    refused = score
                else:
                    yield trace, score
            if refused is not None:
                raise refused


def _remembering(judge: Judge | None, store: SQLStore | None) -> Judge | None:
    """The judge, whose verdicts are kept in the store, or in memory where there is none."""
    if judge is not None:
        from cm2_agent.rewards.verdict_cache import MemoryCache, remember

        remember(judge, MemoryCache() if store is None else store.verdict_cache())
    return judge


def _saved(store: SQLStore, batch: Sequence[tuple[Trace, Score]]) -> list[tuple[Trace, Score | StoreError]]:
    """Save what finished together in one transaction; where the store refuses that, one by one, so that one trace fails alone."""
    version = batch[0][1].reward_version
    # what a score that is now replaced took was paid too
    paid = store.usage(version, [trace.id for trace, score in batch if score.usage]) if any(score.usage for _, score in batch) else {}
    whole = [(trace, replace(score, usage=_summed(paid[trace.id], score.usage)) if trace.id in paid else score) for trace, score in batch]
    try:
        store.save_scores([score for _, score in whole])
        return list(whole)
    except StoreError:
        ended: list[tuple[Trace, Score | StoreError]] = []
        for trace, score in whole:
            try:
                store.save_score(score)
                ended.append((trace, score))
            except StoreError as error:
                ended.append((trace, error))
        return ended


async def _as_they_finish(jobs: Iterator[Coroutine[Any, Any, T]], at_a_time: int) -> AsyncGenerator[list[T], None]:
    """Run the jobs and yield what they return, those together that finished together, in the order of their start.

    A job that fails stops no other, and its error is raised at the end. After an exhausted budget or a store that failed no further job
    is started.
    """
    running: dict[asyncio.Task[T], None] = {}  # a set that keeps the order
    failed: list[Exception] = []
    stopped = False
    try:
        while True:
            while not stopped and len(running) < at_a_time and (job := next(jobs, None)) is not None:
                running[asyncio.create_task(job)] = None
            if not running:
                break
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            ended = [task for task in running if task in done]
            batch = []
            for one in ended:
                del running[one]
                error = one.exception()
                if error is None:
                    batch.append(one.result())
                elif not isinstance(error, Exception):
                    raise error
                else:
                    failed.append(error)
                    stopped = stopped or isinstance(error, BudgetExhausted | StoreError)
            if batch:
                yield batch
    finally:
        await _cancel(running)
    if failed:
        # an exhausted budget is the least of what may have gone wrong, so anything else is told first
        failed.sort(key=lambda error: isinstance(error, BudgetExhausted))
        failed[0].add_note(f"{len(failed)} traces stay without a score; all others that were begun are scored")
        raise failed[0]


def _summed(one: Mapping[str, JSON], other: Mapping[str, JSON]) -> dict[str, JSON]:
    both = {name: (one.get(name, 0), other.get(name, 0)) for name in [*one, *other]}
    return {name: None if None in pair else pair[0] + pair[1] for name, pair in both.items()}


async def score_groups(
    traces: Iterable[Trace], scorer: GroupScorer, *, store: SQLStore | None = None
) -> AsyncIterator[tuple[Trace, Score]]:
    """Score stored rollouts a GRPO group at a time (`cm2_agent.group.group_key`), for a stack with rewards that compare them; save where a
    store is given, which also knows the tasks. A trace without a group is scored alone. Raises ChecklistError, StoreError,
    BudgetExhausted (the groups yielded so far are saved)."""
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        key = group_key(trace, scorer.version)
        groups.setdefault(f"alone:{trace.id}" if key is None else canonical_json(key), []).append(trace)
    if store is not None and scorer.checklist is not None:
        store.save_checklist(scorer.checklist)
    for members in groups.values():
        first = members[0]
        task = store.task(first.task_id, _version(first)) if store is not None and first.task_id is not None else None
        scores = await scorer.score_group(members, task)
        if store is not None:
            store.save_scores(scores)
        for scored in zip(members, scores, strict=True):
            yield scored


def load(path: str) -> Checklist:
    """The checklist in a YAML file. Raises ChecklistError with file and line."""
    from cm2_agent.checklist_file import load_checklist

    return load_checklist(path)


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


def _version(trace: Trace) -> int | None:
    version = trace.attributes.get(TASK_VERSION)
    return int(version) if isinstance(version, int) else None


def _batched(jobs: Sequence[tuple[Task, int]], size: int) -> Iterable[tuple[tuple[Task, int], ...]]:
    return (tuple(jobs[start : start + size]) for start in range(0, len(jobs), size))


async def _cancel(running: Iterable[asyncio.Task[Any]]) -> None:
    left = [dialogue for dialogue in running if not dialogue.done()]
    for dialogue in left:
        dialogue.cancel()
    await asyncio.gather(*left, return_exceptions=True)


__all__ = ["dialogue_seed", "run", "score_groups", "score_traces"]
