"""Running an agent on tasks and scoring what is stored: the introducer of graphs, rewards and middleware to each
other."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from cm2_agent.errors import TaskError
from cm2_agent.runner.rescore import load, remembering, score_groups, score_traces
from cm2_agent.runner.rollout import Result, Rollouts, Verify, Worlds, dialogue_seed
from cm2_agent.runner.tool_setup import Simulator, tool_setup
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import GatedScorer, Judge, Sink, User
from cm2_agent.types.run_attributes import USER
from cm2_agent.types.task import RecordedCall, Task

if TYPE_CHECKING:
    from cm2_agent.graphs.backends.faults import Faults
    from cm2_agent.graphs.backends.record import CallRecorder
    from cm2_agent.graphs.backends.tool_backends import ToolChoice
    from cm2_agent.store import SQLStore

Users: TypeAlias = "str | Any | Callable[[Task], User | None]"
"""A model's name or a chat model, which speaks for tasks that have a persona, or a function that makes a task's user
(None: its turns)."""


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
    concurrency: int = 64,
    lockstep: bool = False,
    seed: int = 0,
    max_steps: int = 24,
    max_turns: int | None = None,
    max_seconds: float | None = None,
    max_tokens: int | None = None,
    name: str | None = None,
    sinks: Sequence[Sink] = (),
) -> AsyncIterator[Result]:
    """Run the graph `group` times on every task and yield each dialogue's (trace, score).

    `graph` is a compiled graph, or a function that gives a task's (`cm2_agent.graphs.agents(model)`: an agent of the
    tools that the task declares). `checklist` scores and gates the rollouts (None: each task's own), or `scorer` does
    in its place: a Stack, say.

    `tools` says who answers tool calls, for all tools or by name: `real`; `record` (real, and written down by
    `recorder`); `replay` of the task's recorded calls, and of a `recording` beside them; `simulate` by `simulator`;
    `hybrid`: replay, else simulate. No real tool is called unless it is named in `allow_real`. `faults` makes some
    calls fail. `user` speaks where a task has a persona.

    `context(task)` opens a fresh world for a dialogue (LangGraph's runtime context; a context manager, sync or async)
    and closes it whatever happens; `verify(task, world, trace)` tells outcomes while it is still open. A dialogue may
    take `max_steps` assistant messages a turn, `max_turns` user messages, `max_seconds`, `max_tokens` of its model:
    what is cut there is no failure, and what it did not reach counts as unpaid.

    `lockstep` makes the run repeatable: `concurrency` dialogues advance together, each with a random stream of its own
    derived from `seed`, its task and its number, and results come in the order of the tasks; else they come as they
    finish. `name` names the run: under the same name, dialogues that the store already holds are not run again, and
    those under way go on after their last finished turn.

    Raises ToolError for a real tool that is not named or one that cannot be switched, TaskError for tasks that cannot
    be run, ChecklistError, StoreError, BudgetExhausted. A dialogue that fails stops no other: its trace says how it
    failed and its reward is NULL."""
    from cm2_agent.graphs.conversation import Limits
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer, check_trainable

    listed = list(tasks)
    if scorer is not None and (checklist is not None or judge is not None):
        raise TaskError(
            "a scorer was given beside a checklist or a judge; it has its own: give them to the scorer,"
            " Stack(checklist, …)"
        )
    if group < 1 or concurrency < 1:
        raise TaskError(f"group is {group} and concurrency {concurrency}; expected 1 or more of each")
    limits = Limits(max_steps=max_steps, max_turns=max_turns, max_seconds=max_seconds, max_tokens=max_tokens)
    chosen = scorer.checklist if scorer is not None else load(checklist) if isinstance(checklist, str) else checklist
    speaking = _users(user, seed)
    setup = tool_setup(
        tools,
        allow_real=allow_real,
        simulator=simulator,
        recording=recording,
        recorder=recorder,
        faults=faults,
        seed=seed,
        store=store,
    )
    graph_of: Callable[[Task], Any] = graph if callable(graph) and not hasattr(graph, "ainvoke") else lambda task: graph
    speakers: dict[tuple[str, int], str] = {}
    for task in listed:
        speaker = speaking(task)
        if speaker is not None:
            speakers[task.id, task.version] = str(getattr(speaker, "version", type(speaker).__qualname__))
        elif task.persona is not None or not task.turns:
            raise TaskError(
                f"task {task.id!r} has no scripted turns, and no user speaks for it; give it `turns`, or name"
                " user=MODEL"
            )
        if chosen is not None or task.checklist is not None:
            check_trainable(chosen or task.own_checklist(), task)
        setup.check(task, graph_of(task))

    def attributes(task: Task) -> dict[str, JSON]:
        speaker = speakers.get((task.id, task.version))
        return {**setup.attributes(task, graph_of(task)), **({} if speaker is None else {USER: speaker})}

    rollouts = Rollouts(
        graph=lambda task: setup.graph(graph_of(task)),
        scorer=scorer or ChecklistScorer(chosen, judge=remembering(judge, store)),
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
        sinks=tuple(sinks),
    )
    if store is not None:
        store.save_tasks(listed)
        for scored in {
            one.hash: one for one in (chosen, *(task.own_checklist() for task in listed)) if one is not None
        }.values():
            store.save_checklist(scored)
    jobs = [(task, number) for task in listed for number in range(group)]
    return rollouts.in_lockstep(jobs, concurrency) if lockstep else rollouts.as_finished(jobs, concurrency)


def _users(user: Users | None, seed: int) -> Callable[[Task], User | None]:
    """What makes a task's user, None where its turns are said. Raises TaskError."""
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
    return lambda task: None if task.persona is None else LLMUser(model, task.persona, seed=seed)


__all__ = ["dialogue_seed", "run", "score_groups", "score_traces"]
