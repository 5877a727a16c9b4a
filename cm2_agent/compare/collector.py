"""The collector: scored rollouts of a policy on a desk, sampled in one batch without a graph, as `run` would make
them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cm2_agent.benchmarks.training_desk import TrainingDesk
from cm2_agent.errors import TaskError
from cm2_agent.models.adapters import plain_model
from cm2_agent.models.local import LocalChatModel
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.runner.rollout import dialogue_seed
from cm2_agent.types.group import Group, Rollout, group_key
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.run_attributes import GROUP, ROLLOUT, TASK_ID, TASK_TURNS, TASK_VERSION, TOOL_BACKENDS
from cm2_agent.types.task import Task, check_trainable
from cm2_agent.types.trace import Trace

from .chat_text import ChatText
from .dialogue import SampledDialogue
from .streams import advance

MAX_TOKENS = 32
"""Tokens an answer, at most."""


def collect(
    desk: TrainingDesk,
    policy: str | Path | LocalChatModel,
    tasks: Sequence[Task],
    *,
    group: int = 1,
    seed: int = 0,
    name: str,
    temperature: float = 1.0,
    at_once: int = 512,
) -> list[Group]:
    """Hold `group` dialogues on each task, and score them; a group a task, in the order of the tasks.

    The dialogues, their token ids and their scores are those of
    `run(desk.graph(model), tasks, checklist=desk.checklist, lockstep=True, …)` with the same seed and name; logprobs
    agree to rounding. Two things differ: a call's `input` messages are left out (its `prompt_ids` are there), and where
    a tool call was cut off at the limit of tokens the dialogue reads on after it, where the graph's model encodes the
    history afresh.

    Args:
        desk: whose tools, world and checklist.
        policy: a folder, or a loaded model (its temperature and `max_tokens` then count).
        tasks: with scripted turns, each once.
        group: rollouts of each task.
        seed: of the random streams, one a dialogue.
        name: of the run; it stands in the traces' ids and in the groups' keys.
        temperature: of a policy that is loaded here; 0 is greedy.
        at_once: the most dialogues in a batch.

    Raises:
        TaskError: a task without scripted turns, one listed twice, or a checklist that gates turns.
        ModelError: a policy that cannot be loaded, or whose logits are no numbers.
    """
    scorer = ChecklistScorer(desk.checklist)
    _check(desk, tasks, scorer)
    model = policy
    if not isinstance(model, LocalChatModel):
        model = LocalChatModel.load(model, temperature=temperature, max_tokens=MAX_TOKENS)
    text = ChatText(model, desk.tools)
    jobs = list(itertools.product(tasks, range(group)))
    groups: dict[str, list[Rollout]] = {}
    for start in range(0, len(jobs), at_once):
        for task, trace in _dialogues(desk, text, jobs[start : start + at_once], seed, name):
            rollout = Rollout(trace=trace, score=scorer.score_sync(trace, task))
            groups.setdefault(task.id, []).append(rollout)
    return [
        Group(key=group_key(rollouts[0].trace, scorer.version) or {}, rollouts=tuple(rollouts))
        for rollouts in groups.values()
    ]


def _dialogues(
    desk: TrainingDesk, text: ChatText, jobs: Sequence[tuple[Task, int]], seed: int, name: str
) -> list[tuple[Task, Trace]]:
    backends = canonical_json({tool.name: "real" for tool in desk.tools})
    with ExitStack() as opened:
        dialogues = []
        for task, number in jobs:
            facts: dict[str, JSON] = {
                TASK_ID: task.id,
                TASK_VERSION: task.version,
                ROLLOUT: number,
                GROUP: name,
                TOOL_BACKENDS: backends,
                TASK_TURNS: len(task.turns),
            }
            own = dialogue_seed(seed, task.id, number)

            def uniforms(call: int, length: int, own: int = own) -> np.ndarray[Any, Any]:
                return np.random.default_rng((own, call)).random(length)

            dialogues.append(
                SampledDialogue(
                    task,
                    desk,
                    text,
                    world=opened.enter_context(desk.open(task)),
                    thread=f"{name}/{task.id}@{task.version}/{number}",
                    facts=facts,
                    uniforms=uniforms,
                )
            )
        advance(plain_model(text.model.model), dialogues, temperature=text.temperature)
        finished = []
        for (task, _), dialogue in zip(jobs, dialogues, strict=True):
            trace = dialogue.trace
            outcomes = dict(desk.verify(task, dialogue.world, trace))
            finished.append((task, Trace(id=trace.id, runs=trace.runs, outcomes=outcomes)))
        return finished


def _check(desk: TrainingDesk, tasks: Sequence[Task], scorer: ChecklistScorer) -> None:
    seen: set[str] = set()
    for task in tasks:
        check_trainable(desk.checklist, task)
        if task.scripted_turns is None or task.id in seen:
            why = "has no scripted turns" if task.scripted_turns is None else "is listed twice"
            raise TaskError(f"task {task.id!r} {why}; expected tasks with the user's turns, each once")
        seen.add(task.id)
        if scorer.gate_hash(task) is not None:
            raise TaskError(
                f"checklist {desk.checklist.name!r} has items that are required for the next turn; here no gate is"
                " asked between turns. Take `run(…)`, or leave required_for_next_turn out"
            )
