"""A trial: one cell of an experiment carried out, round by round; what a killed one had finished is not done again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cm2_agent.benchmarks.training_desk import TrainingDesk
from cm2_agent.types.group import Group
from cm2_agent.types.json_file import write_json
from cm2_agent.types.task import Task

from .arms import arm_of
from .claim import claim
from .collector import collect
from .experiment import Cell, Experiment
from .training import Budget, length_of, sampled_tokens, train

LOCKS = "locks"
"""The folder of a comparison in which its processes claim what they work on."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
FULL = 1 - 1e-9
"""Rewards from here on are whole: sums of weights are not exact."""
SPARE = 2
"""A round may take so many times its tasks where dialogues become shorter, to draw as many tokens as the first did."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What carries out cells: `desk` and `experiment`, and the folder of the comparison."""

    desk: TrainingDesk
    experiment: Experiment
    out: Path
    progress: Progress

    def start(self, seed: int) -> Path:
        """The policy of a cold start, made unless it is there."""
        folder = self.out / "starts" / str(seed)
        with claim(self.out / LOCKS / f"start-{seed}", wait=True):
            if not folder.exists():
                unfinished = folder.with_name(f".{seed}")
                shutil.rmtree(unfinished, ignore_errors=True)
                made = self.desk.cold_start(
                    unfinished,
                    turns=self.experiment.turns,
                    start=self.experiment.start,
                    seed=seed,
                    steps=self.experiment.cold_start_steps,
                    progress=self.progress,
                )
                made.rename(folder)
        return folder

    def before(self, cell: Cell) -> dict[str, Any]:
        """How the start of a cell does on the tasks that the cell is evaluated on, once for all arms."""
        path = self.out / "starts" / f"{cell.stage}-{cell.cold_start}-{cell.sampling}.json"
        if not path.exists():
            write_json(path, self.evaluate(self.start(cell.cold_start), cell))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def run(self, cell: Cell) -> dict[str, Any]:
        """Carry a cell out; its result."""
        began, clock = time.process_time(), time.monotonic()
        arm, size = arm_of(cell.arm), self.experiment
        before = self.before(cell)
        scratch = self.out / "work" / cell.key
        scratch.mkdir(parents=True, exist_ok=True)
        start = policy = self.start(cell.cold_start)
        pooled: list[Group] = []
        rounds: list[dict[str, Any]] = []
        budget: Budget | None = None
        drawn: int | None = None
        for number in range(1, size.rounds + 1):
            trained, record = scratch / f"policy-{number}", scratch / f"round-{number}.json"
            done = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
            if done is None or arm.restarts:  # a restart trains on the rollouts of earlier rounds too
                self.progress(f"{cell.key} round {number}: sampling", 0, 1)
                groups = self.collect(policy, cell, number, drawn)
                pooled = [*pooled, *groups] if arm.restarts else groups
            if done is None:
                drawn = drawn or sum(map(sampled_tokens, groups))
                read = sum(length_of(rollout.trace) for group in groups for rollout in group.rollouts)
                budget = budget or Budget(steps=size.steps, tokens=round(size.passes * read))
                more = number if arm.restarts else 1
                shutil.rmtree(trained, ignore_errors=True)
                self.progress(f"{cell.key} round {number}: training", 0, 1)
                took = train(
                    arm,
                    start if arm.restarts else policy,
                    trained,
                    pooled,
                    learning_rate=cell.learning_rate,
                    budget=Budget(steps=more * budget.steps, tokens=more * budget.tokens),
                    seed=1000 * cell.sampling + number,
                )
                done = {
                    "round": number,
                    "collected": figures(groups),
                    "trained": asdict(took),
                    "budget": asdict(budget),
                }
                write_json(record, done)
            rounds.append(done)
            budget, drawn = Budget(**done["budget"]), rounds[0]["collected"]["sampled_tokens"]
            policy = trained if trained.exists() else policy
        self.progress(f"{cell.key}: evaluating", 0, 1)
        result = {
            "cell": asdict(cell),
            "before": before,
            "rounds": rounds,
            "after": self.evaluate(policy, cell),
            "sampled_tokens": sum(one["collected"]["sampled_tokens"] for one in rounds),
            "trained_tokens": sum(one["trained"]["tokens"] for one in rounds),
            "cpu_seconds": round(time.process_time() - began, 1),  # of what was done now, not before it was killed
            "seconds": round(time.monotonic() - clock, 1),
        }
        shutil.rmtree(scratch)
        return result

    def collect(self, policy: Path, cell: Cell, number: int, tokens: int | None) -> list[Group]:
        """A round's groups: of all its tasks, or of as many as it takes to draw so many tokens."""
        size = self.experiment
        name = f"round-{number}"
        seed = 1000 * cell.sampling + number
        tasks = self.desk.training(seed, size.turns, SPARE * size.tasks)
        if tokens is None:
            return collect(self.desk, policy, tasks[: size.tasks], group=size.group, seed=seed, name=name)
        groups: list[Group] = []
        step = max(1, size.tasks // 8)
        while len(groups) < len(tasks) and sum(map(sampled_tokens, groups)) < tokens:
            count = step if groups else max(1, size.tasks - 2 * step)
            some = tasks[len(groups) : len(groups) + count]
            groups += collect(self.desk, policy, some, group=size.group, seed=seed, name=name)
        while len(groups) > 1 and sum(map(sampled_tokens, groups[:-1])) >= tokens:
            groups.pop()
        return groups

    def evaluate(self, policy: Path, cell: Cell) -> dict[str, Any]:
        """A policy on tasks that it was not trained on: for tuning of the training branch, in the test held-out."""
        return figures(collect(self.desk, policy, self.evaluation(cell), seed=cell.sampling, name="evaluation"))

    def evaluation(self, cell: Cell) -> Sequence[Task]:
        """The tasks that a cell's policies are evaluated on."""
        size = self.experiment
        if cell.stage == "test":
            return self.desk.heldout(0, size.turns, size.evaluated)
        return self.desk.training(1_000_000, size.turns, size.evaluated)


def figures(groups: Sequence[Group]) -> dict[str, Any]:
    """Means over the rollouts of groups: `reward`, `success`, the share of `full` rewards; `best_turns`, the share of
    groups and turns whose best rollout is full in that turn; and counts."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [rollout.score.lower or 0.0 for rollout in rollouts]
    best = [
        max((turn.reward or 0.0) for turn in turns)
        for group in groups
        for turns in zip(*(rollout.score.turns for rollout in group.rollouts), strict=False)
    ]
    return {
        "rollouts": len(rollouts),
        "reward": _mean(rewards),
        "success": _mean([rollout.trace.outcomes.get("success") or 0.0 for rollout in rollouts]),
        "full": _mean([float(reward >= FULL) for reward in rewards]),
        "best_turns": _mean([float(reward >= FULL) for reward in best]),
        "sampled_tokens": sum(map(sampled_tokens, groups)),
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6) if values else 0.0
