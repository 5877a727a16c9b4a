"""Running an agent on tasks and scoring what is stored: the introducer of graphs, rewards and middleware to each other."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cm2_agent.checklist import Checklist
from cm2_agent.errors import TaskError
from cm2_agent.messages import canonical_json
from cm2_agent.protocols import GatedScorer, Judge, Sink
from cm2_agent.rollouts import Result, Rollouts, Verify, Worlds, dialogue_seed
from cm2_agent.scoring import load, remembering, score_groups, score_traces
from cm2_agent.task import Task
from cm2_agent.trace import TOOL_BACKENDS

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore



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
    from cm2_agent.graphs.dialogue import Limits
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
    backends = canonical_json(dict.fromkeys(sorted(refuse_unnamed(graph, allow_real)), "real"))
    rollouts = Rollouts(
        graph=graph, scorer=scorer or ChecklistScorer(chosen, judge=remembering(judge, store)), store=store, context=context,
        verify=verify, allow_real=tuple(allow_real), attributes=lambda task: {TOOL_BACKENDS: backends}, seed=seed,
        limits=Limits(max_steps=max_steps),
        name=name or uuid.uuid4().hex[:12], resumable=name is not None, sinks=tuple(sinks),
    )  # fmt: skip
    if store is not None:
        store.save_tasks(listed)
        for scored in {one.hash: one for one in (chosen, *(task.own_checklist() for task in listed)) if one is not None}.values():
            store.save_checklist(scored)
    jobs = [(task, number) for task in listed for number in range(group)]
    return rollouts.in_lockstep(jobs, concurrency) if lockstep else rollouts.as_finished(jobs, concurrency)


__all__ = ["dialogue_seed", "run", "score_groups", "score_traces"]
