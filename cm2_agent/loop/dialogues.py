"""Dialogues: what a loop's stages hold, score and read back of the policies' dialogues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cm2_agent.errors import TrainError
from cm2_agent.loop.promotion import Values
from cm2_agent.loop.rollouts import Rollouts, trace_id
from cm2_agent.loop.settings import REWARD
from cm2_agent.store import SQLStore
from cm2_agent.types.task import Task

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class RunOf:
    """One run of a loop: its name, its tasks, and the dialogues on each."""

    name: str
    tasks: Sequence[Task]
    group: int

    @property
    def ids(self) -> list[str]:
        return [trace_id(self.name, task, number) for task in self.tasks for number in range(self.group)]


@dataclass(kw_only=True)
class Dialogues:
    """Holds runs with policies and reads what they were worth; `by` is what counts: "reward" or an outcome."""

    rollouts: Rollouts
    store: SQLStore
    by: str = REWARD
    progress: Progress = field(default=lambda what, done, total: None)

    def hold(self, run: RunOf, policy: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
        """Hold a run with a policy; its figures."""
        total, done = len(run.tasks) * run.group, 0

        def advance() -> None:
            nonlocal done
            done += 1
            self.progress(f"{run.name}: dialogues", done, total)

        self.rollouts.hold(policy["folder"], run.tasks, group=run.group, seed=seed, name=run.name, advance=advance)
        tokens = failed = 0
        for trace in self.store.traces(ids=run.ids):
            tokens += sum(len(call.completion_ids or ()) for call in trace.calls)
            failed += trace.failure is not None
        return {"run": run.name, "policy": policy["version"], "dialogues": total, "failed": failed, "tokens": tokens}

    def score(self, runs: Sequence[RunOf]) -> dict[str, Any]:
        """Score what is pending of runs; their figures. Raises TrainError where nothing could be scored: that is no
        finding, and the stage is done again."""
        ids = [id for run in runs for id in run.ids]
        self.rollouts.score(ids)
        reward = self.rollouts.reward
        lower = [one.lower for one in self.store.scores(reward, ids=ids) if one.lower is not None]
        if not lower:
            raise TrainError(
                f"none of {len(ids)} dialogues of {', '.join(run.name for run in runs)} could be scored; see that the"
                " judge answers, and repeat the command"
            )
        usd = [used.get("usd") for used in self.store.usage(reward, ids).values()]
        return {
            "reward": reward,
            "scored": len(lower),
            "pending": len(ids) - len(lower),
            "mean_reward": round(sum(lower) / len(lower), 6),
            "usd": round(sum(one for one in usd if isinstance(one, int | float)), 6),
        }

    def values(self, run: RunOf) -> Values:
        """What a run's dialogues were worth, by task. Raises TrainError where none has the outcome that counts."""
        worth: dict[str, float | None]
        if self.by == REWARD:
            scores = self.store.scores(self.rollouts.reward, ids=run.ids)
            worth = {one.trace_id: one.lower for one in scores}
        else:
            worth = {trace.id: trace.outcomes.get(self.by) for trace in self.store.traces(ids=run.ids)}
        found = {
            task.id: [worth.get(trace_id(run.name, task, number)) for number in range(run.group)] for task in run.tasks
        }
        if self.by != REWARD and all(value is None for values in found.values() for value in values):
            raise TrainError(
                f"no dialogue of {run.name} has the outcome {self.by!r}; name one that --verify returns, or compare by"
                " reward"
            )
        return found

    def compare(
        self, policies: Mapping[str, Mapping[str, Any]], tasks: Sequence[Task], name: str, *, group: int, seed: int
    ) -> dict[str, Any]:
        """Hold the same tasks with each policy, with the same random numbers: what the dialogues were worth, by the
        policy's role and task."""
        runs = {
            role: RunOf(name=f"{name}-{role}-{policy['version']}", tasks=tasks, group=group)
            for role, policy in policies.items()
        }
        held = [self.hold(run, policies[role], seed=seed) for role, run in runs.items()]
        scored = self.score(list(runs.values()))
        return {**{role: self.values(run) for role, run in runs.items()}, **spent([*held, scored])}


def spent(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tokens that policies drew and the dollars that judges cost, summed."""
    return {
        "tokens": sum(one.get("tokens", 0) for one in parts),
        "usd": round(sum(one.get("usd", 0.0) for one in parts), 6),
    }
