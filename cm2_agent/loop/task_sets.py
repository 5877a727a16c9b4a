"""TaskSets: the tasks that a loop trains on, promotes by, and is tested on at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cm2_agent.datasets.splits import split
from cm2_agent.errors import TaskError
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.task import Task


@dataclass(frozen=True, kw_only=True)
class TaskSets:
    """Three sets of tasks that share none.

    Args:
        training: what policies are trained on.
        promotion: what candidates are compared with the promoted policy on.
        test: what the first and the last promoted policy are compared on at the end, and nothing else.

    Raises:
        TaskError: a set is empty, a task is listed twice, or stands in two sets.
    """

    training: Sequence[Task]
    promotion: Sequence[Task]
    test: Sequence[Task]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for name, tasks in self.sets.items():
            if not tasks:
                raise TaskError(f"the {name} set is empty; expected tasks of its own for training, promotion and test")
            for task in tasks:
                for known in {task.id, _content(task)}:
                    other = seen.setdefault(known, name)
                    if other != name:
                        raise TaskError(
                            f"task {task.id!r} is of the {other} set and of the {name} set (by its id or its content):"
                            " a policy would be judged by what it was trained on. Leave it out of one"
                        )
            if len({task.id for task in tasks}) < len(tasks):
                raise TaskError(f"the {name} set lists a task twice; expected each once")

    @property
    def sets(self) -> dict[str, Sequence[Task]]:
        return {"training": self.training, "promotion": self.promotion, "test": self.test}

    @property
    def shared_entities(self) -> list[str]:
        """Entities of the training set that stand in another set too: what is learnt of them may be known there."""
        trained = {entity for task in self.training for entity in task.entities}
        others = {entity for task in (*self.promotion, *self.test) for entity in task.entities}
        return sorted(trained & others)

    @property
    def hashes(self) -> dict[str, str]:
        """A hash of each set's content."""
        return {name: content_hash([task.to_json() for task in tasks])[:16] for name, tasks in self.sets.items()}

    def round(self, number: int, count: int | None) -> list[Task]:
        """The training tasks of round `number` (1-based): `count` of them, going on where the round before ended and
        beginning again at the end; None: all."""
        size = len(self.training) if count is None else min(count, len(self.training))
        begin = (number - 1) * size
        return [self.training[(begin + offset) % len(self.training)] for offset in range(size)]

    def compared(self, number: int, rounds: int, *, fresh: bool) -> list[Task]:
        """The promotion tasks of round `number`: all of them, or with `fresh` every `rounds`-th."""
        return list(self.promotion[number - 1 :: rounds]) if fresh else list(self.promotion)


def split_tasks(tasks: Sequence[Task], *, promotion: float = 0.2, test: float = 0.2, seed: int = 0) -> TaskSets:
    """Three sets out of one, so that no entity stands in two of them (`datasets.split`).

    Args:
        tasks: all of them.
        promotion: the share that candidates are compared on.
        test: the share of the final test.
        seed: of the split.

    Raises:
        TaskError: a share that leaves a set empty.

    >>> tasks = [Task(id=str(number), turns=[f"Where is order {number}?"]) for number in range(10)]
    >>> [len(one) for one in split_tasks(tasks).sets.values()]
    [6, 2, 2]
    """
    if not 0 < promotion < 1 or not 0 < test < 1 or promotion + test >= 1:
        raise TaskError(f"promotion {promotion} and test {test}; expected shares above 0 that leave tasks to train on")
    first = split(tasks, fraction=test, seed=seed)
    rest = split(first.train, fraction=promotion / (1 - test), seed=seed + 1)
    return TaskSets(training=rest.train, promotion=rest.held_out, test=first.held_out)


def _content(task: Task) -> str:
    """A task's content whatever its id is called; JSON, so that no id can equal it."""
    return content_hash({**task.to_json(), "id": None, "version": None})


__all__ = ["TaskSets", "split_tasks"]
