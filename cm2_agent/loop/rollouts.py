"""Rollouts: the protocol of who holds a loop's dialogues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cm2_agent.types.task import Task


class Rollouts(Protocol):
    """Who holds a loop's dialogues. `reward` is the reward version of their scores."""

    @property
    def reward(self) -> str: ...

    def version(self, policy: str) -> str:
        """The version of the policy in a folder: what its dialogues bear. Raises ModelError."""
        ...

    def hold(
        self, policy: str, tasks: Sequence[Task], *, group: int, seed: int, name: str, advance: Callable[[], object]
    ) -> None:
        """Hold `group` dialogues on each task with the policy in a folder and store them, scored as far as can be.

        A dialogue's id is `trace_id(name, task, number)`. What is stored under the name already is not held again, and
        the same seed gives the same dialogues. `advance` is called for each that is done.
        """

    def score(self, ids: Sequence[str]) -> None:
        """Score those of these traces whose reward is pending."""


def trace_id(name: str, task: Task, number: int) -> str:
    """The id of the dialogue `number` (0-based) on a task in the run `name`."""
    return f"{name}/{task.id}@{task.version}/{number}"
