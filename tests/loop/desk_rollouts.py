"""A loop on a bundled desk: dialogues sampled by the collector of `cm2 compare`, stored as `run` would store them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cm2_agent import LocalChatModel, SQLStore, Task
from cm2_agent.benchmarks.training_desk import TrainingDesk
from cm2_agent.compare.collector import collect
from cm2_agent.loop.rollouts import trace_id
from cm2_agent.rewards.scoring.scorer import ChecklistScorer


@dataclass(frozen=True, kw_only=True)
class DeskRollouts:
    """Dialogues on `desk`, stored in `store`."""

    desk: TrainingDesk
    store: SQLStore

    @property
    def reward(self) -> str:
        return ChecklistScorer(self.desk.checklist).version

    def version(self, policy: str) -> str:
        return LocalChatModel.load(policy).model_version

    def hold(
        self, policy: str, tasks: Sequence[Task], *, group: int, seed: int, name: str, advance: Callable[[], object]
    ) -> None:
        if all(self.store.holds(trace_id(name, task, number)) for task in tasks for number in range(group)):
            return
        self.store.save_tasks(tasks)
        self.store.save_checklist(self.desk.checklist)
        for found in collect(self.desk, policy, tasks, group=group, seed=seed, name=name):
            for one in found.rollouts:
                if not self.store.holds(one.trace.id):
                    self.store.save_dialogue(one.trace.runs, one.score, one.trace.outcomes)
                advance()

    def score(self, ids: Sequence[str]) -> None:
        """Every dialogue was scored when it was held: no judge is asked."""
