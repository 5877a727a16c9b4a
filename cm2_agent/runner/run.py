"""`run`: an agent on tasks, each dialogue traced, stored and scored."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from cm2_agent.errors import StoreError, TaskError
from cm2_agent.online.middleware import Middleware
from cm2_agent.runner.judge_retries import RetryingScorer
from cm2_agent.runner.rescore import read_if_path, require_store, saved, with_cache
from cm2_agent.runner.rollout import Result, Rollouts, Verify, Worlds
from cm2_agent.runner.same_run import made_with
from cm2_agent.runner.tool_setup import Simulator, tool_setup
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import GatedScorer, Judge, Sink, User
from cm2_agent.types.run_attributes import MADE_WITH, TASK_MESSAGES, USER
from cm2_agent.types.score import Score
from cm2_agent.types.scripted_turns import exogenous_pattern
from cm2_agent.types.task import RecordedCall, Task, check_trainable
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    from cm2_agent.graphs.backends.faults import Faults
    from cm2_agent.graphs.backends.record import CallRecorder
    from cm2_agent.graphs.backends.tool_backends import ToolChoice
    from cm2_agent.graphs.conversation_setup import RolloutLimits
    from cm2_agent.redaction.redactor import Redactor
    from cm2_agent.store import SQLStore

Users: TypeAlias = "str | Any | Callable[[Task], User | None]"
"""A model or its name, which plays the persona of tasks that have one, or a function that makes a task's user (None:
the task's turns)."""


def run(
    graph: Any,
    tasks: Iterable[Task],
    *,
    group: int = 1,
    checklist: Checklist | str | None = None,
    judge: Judge | None = None,
    scorer: GatedScorer | None = None,
    store: SQLStore | None = None,
    tools: ToolChoice = "real",
    simulator: Simulator | None = None,
    allow_real: Iterable[str] = (),
    faults: Faults | None = None,
    recording: Iterable[RecordedCall] = (),
    recorder: CallRecorder | None = None,
    user: Users | None = None,
    context: Worlds | None = None,
    verify: Verify | None = None,
    limits: RolloutLimits | None = None,
    concurrency: int = 64,
    lockstep: bool = False,
    seed: int = 0,
    name: str | None = None,
    shard: bool = False,
    sinks: Sequence[Sink] = (),
    redact: Redactor | None = None,
) -> AsyncIterator[Result]:
    """Run an agent `group` times on every task; yields each dialogue's (trace, score).

    A dialogue that fails stops no other: its trace says how it failed, and its reward is NULL where the failure was not
    the agent's. One at which the judge failed is scored again at the end (`score_traces`); sinks get it a second time
    where its score has changed.

    Args:
        graph: A compiled graph, or a function that makes a task's graph (`graphs.agents(model)`: an agent of the tools
            that the task declares).
        tasks: What the agent is asked. A task that is listed twice has twice as many rollouts.
        group: Rollouts of each task, 1 or more.
        checklist: Scores and gates the rollouts: a Checklist or its YAML file; None: each task's own.
        judge: Answers the checklist's questions; its verdicts are cached in the store, in memory without one.
        scorer: Scores and gates in place of checklist and judge: a Stack, say.
        store: Where tasks, checklists, traces and scores are stored.
        tools: Who answers tool calls, one backend for all or `{tool: backend}`: an object (`Real()`,
            `Record(recorder)`, `Replay(recording)`, `Simulate(model)`, `Hybrid(…)`, or your own), or a short form
            ("real", "record", "replay", "simulate", "hybrid"). A tool that is not named is real.
        simulator: Who answers under "simulate" and "hybrid": a model, its name, or a function that makes a task's.
        allow_real: The real tools that may be called; no other is.
        faults: Makes some calls fail.
        recording: Calls that "replay" and "hybrid" replay beside each task's own.
        recorder: Where "record" writes calls down.
        user: Who writes the messages of tasks with a persona: a model, its name, or a function of a task.
        context: `context(task)` opens a fresh world for a dialogue (LangGraph's runtime context; a context manager,
            sync or async), which is closed whatever happens.
        verify: `verify(task, world, trace)` returns outcomes, {name: number or None}, while the world is still open.
        limits: What one dialogue may take; where a limit cuts it, what it did not reach counts as unpaid.
        concurrency: Dialogues at a time, 1 or more.
        lockstep: Makes the run repeatable: `concurrency` dialogues advance together, each with a random stream of its
            own from `seed`, its task and its number, and results come in the order of the tasks; else they come as
            they finish.
        seed: Of the random streams, the simulators and the users.
        name: Names the run. Under the same name, dialogues that the store holds are not run again, and unfinished ones
            go on after their last finished turn. Stored dialogues of other models, another seed, other tools, user or
            gate are refused. Several processes, on any machines, may do a run of one name at the same time: each
            dialogue is held by one of them, and what one leaves undone that ends is taken over.
        shard: Yields the dialogues of this process alone, of a run that several do; it ends when all are done.
        sinks: Called with every trace and its score.
        redact: Replaces personal data and secrets before anything is stored, judged, sent, or shown to a simulator or
            simulated user that is given as a model; agent and real tools see what was written. Checklists are redacted
            alike, so that what they compare still agrees. Give it a `key`: another run of the same tasks must make the
            same placeholders. A named run holds finished dialogues only; unfinished ones begin again.

    Raises:
        ToolError: A real tool that is not in `allow_real`, one that cannot be switched, a backend that lacks something.
        TaskError: A task that cannot be run, two tasks of one id and version, a limit of 0 or less, or the name of
            another run.
        ChecklistError: A checklist that cannot be read, or gates on what a rollout cannot show.
        StoreError: The store refuses.
        BudgetExhausted: A judge, simulator or user may spend no more, or its provider refuses it (JudgeRefused); what
            is scored is stored.

    >>> import asyncio
    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent import Checklist, Item, Task, run
    >>> from cm2_agent.graphs import agent
    >>> graph = agent(GenericFakeChatModel(messages=iter(["It was shipped."])), [])
    >>> checklist = Checklist(Item("replies", check={"replied": True}), name="shop")
    >>> async def rewards():
    ...     task = Task(id="where", turns=["Where is order 7?"])
    ...     return [score.reward async for _, score in run(graph, [task], checklist=checklist)]
    >>> asyncio.run(rewards())
    [1.0]
    """
    from cm2_agent.graphs.interception.models import models_of
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    listed = _distinct(tasks)
    if scorer is not None and (checklist is not None or judge is not None):
        raise TaskError(
            "a scorer was given beside a checklist or a judge; it has its own: give them to the scorer,"
            " Stack(checklist, …)"
        )
    if group < 1 or concurrency < 1:
        raise TaskError(f"group is {group} and concurrency {concurrency}; expected 1 or more of each")
    if shard and (name is None or store is None):
        raise TaskError(
            "shard=True shares a run with other processes; give it the run's name= and the store= they share"
        )
    require_store(store)
    chosen = read_if_path(checklist) if scorer is None else scorer.checklist
    speaking = _users(user, seed, redact)
    shown = listed
    if redact is not None:
        from cm2_agent.redaction.redacted_checklist import redacted_checklist
        from cm2_agent.redaction.redacted_task import redacted_task
        from cm2_agent.redaction.redactor import check_redactor

        check_redactor(redact)

        shown = [redacted_task(task, redact) for task in listed]
        chosen = None if chosen is None else redacted_checklist(chosen, redact)
    setup = tool_setup(
        tools,
        allow_real=allow_real,
        simulator=simulator,
        recording=recording,
        recorder=recorder,
        faults=faults,
        seed=seed,
        store=store,
        redact=redact,
    )
    graph_of: Callable[[Task], Any] = graph if callable(graph) and not hasattr(graph, "ainvoke") else lambda task: graph
    speakers: dict[tuple[str, int], str] = {}
    scripted: dict[tuple[str, int], list[JSON]] = {}
    for task, known in zip(listed, shown, strict=True):
        speaker = speaking(task)
        if speaker is not None:
            speakers[task.id, task.version] = str(getattr(speaker, "version", type(speaker).__qualname__))
        elif task.persona is not None or not task.turns:
            raise TaskError(
                f"task {task.id!r} has no scripted turns, and no user speaks for it; give it `turns`, or name"
                " user=MODEL"
            )
        scored_by = chosen or known.own_checklist()
        if scored_by is not None:
            check_trainable(scored_by, known)
            if known.scripted_turns and any(exogenous_pattern(item) is not None for item in scored_by):
                scripted[task.id, task.version] = list(known.turns)
        setup.check(task, graph_of(task))

    models: dict[int, tuple[Any, list[str]]] = {}

    def made(agent: Any) -> str:
        if id(agent) not in models:
            models[id(agent)] = agent, models_of(agent)  # holding the graph keeps its identity its own
        return made_with(models[id(agent)][1], seed)

    def attributes(task: Task) -> dict[str, JSON]:
        speaker, messages = speakers.get((task.id, task.version)), scripted.get((task.id, task.version))
        own = graph_of(task)
        return {
            **setup.attributes(task, own),
            **({} if name is None or store is None else {MADE_WITH: made(own)}),
            **({} if speaker is None else {USER: speaker}),
            **({} if messages is None else {TASK_MESSAGES: messages}),
        }

    scoring = RetryingScorer(scorer or ChecklistScorer(chosen, judge=with_cache(judge, store)))
    rollouts = Rollouts(
        graph=lambda task: setup.graph(graph_of(task)),
        scorer=scoring,
        store=store,
        context=context,
        verify=verify,
        backends=lambda task, thread, number: setup.backends(task),
        user=speaking if speakers else None,
        attributes=attributes,
        allow_real=setup.allow_real,
        limits=limits,
        seed=seed,
        name=name or uuid.uuid4().hex[:12],
        resumable=name is not None,
        shard=shard,
        sinks=tuple(sinks),
        redact=redact,
    )
    if store is not None:
        store.save_tasks(shown)
        for scored in {
            one.hash: one for one in (chosen, *(task.own_checklist() for task in shown)) if one is not None
        }.values():
            store.save_checklist(scored)
    jobs = _numbered(listed, group)

    async def save(scored: list[tuple[Trace, Score]]) -> None:
        for trace, score in scored if store is None else saved(store, scored, [trace.id for trace, _ in scored]):
            if isinstance(score, StoreError):
                raise score
            await Middleware(sinks=tuple(sinks)).notify(trace, score)

    results = rollouts.in_lockstep(jobs, concurrency) if lockstep else rollouts.as_finished(jobs, concurrency)
    return scoring.settled(results, save, at_a_time=concurrency, in_order=lockstep)


def _distinct(tasks: Iterable[Task]) -> list[Task]:
    """The tasks as a list. Raises TaskError where two have one id and version, and other content."""
    listed = list(tasks)
    first: dict[tuple[str, int], Task] = {}
    for task in listed:
        known = first.setdefault((task.id, task.version), task)
        if known is not task and known.to_json() != task.to_json():
            raise TaskError(
                f"two different tasks have the id {task.id!r} and version {task.version}: their rollouts would be"
                " compared as those of one task. Give each an id of its own, or a changed task a new version"
            )
    return listed


def _numbered(tasks: Sequence[Task], group: int) -> list[tuple[Task, int]]:
    """Each task with the numbers of its rollouts: one that is listed again goes on counting."""
    following: Counter[tuple[str, int]] = Counter()
    jobs: list[tuple[Task, int]] = []
    for task in tasks:
        begin = following[task.id, task.version]
        following[task.id, task.version] += group
        jobs += [(task, number) for number in range(begin, begin + group)]
    return jobs


def _users(user: Users | None, seed: int, redact: Redactor | None) -> Callable[[Task], User | None]:
    """The function that makes a task's user, None for the task's own turns. Raises TaskError."""
    from langchain_core.language_models import BaseChatModel
    from pydantic_ai.models import Model

    if user is None:
        return lambda task: None
    if not isinstance(user, str | Model | BaseChatModel):
        if not callable(user):
            raise TaskError(f"the user is a {type(user).__name__}; expected a model, its name, or a function of a task")
        return cast("Callable[[Task], User | None]", user)
    from cm2_agent.graphs.users import LLMUser
    from cm2_agent.llm.providers import language_model

    model = language_model(user, of="user")
    return lambda task: None if task.persona is None else LLMUser(model, task.persona, seed=seed, redact=redact)


__all__ = ["run"]
