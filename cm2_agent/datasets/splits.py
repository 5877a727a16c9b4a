"""Training tasks and held-out tasks that share no entity.

Tasks that share an entity, directly or through others, form a component (union-find); a component goes to one side as a
whole. So a policy is never tried on an order, a customer or a case that it was trained on. What nearly every task
shares (a flight that everybody searches) would make one component of all: leave it out with `ignore` or `most`."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cm2_agent.datasets.entities import matches
from cm2_agent.errors import TaskError
from cm2_agent.types.task import Task


@dataclass(frozen=True, kw_only=True)
class Split:
    """`train` and `held_out` in the given order, their entities without those left out. `components` are the sizes of
    all components, largest first; `entities` counts what is compared, `ignored` what was left out; `note` says why
    held-out tasks are fewer than wanted."""

    train: tuple[Task, ...]
    held_out: tuple[Task, ...]
    components: tuple[int, ...]
    entities: int
    ignored: int = 0
    note: str | None = None


def split(
    tasks: Sequence[Task], *, fraction: float, seed: int = 0, ignore: Iterable[str] = (), most: float | None = None
) -> Split:
    """Hold out about `fraction` of the tasks, never more, so that no entity stands on both sides.

    Args:
        tasks: in the order in which both sides come back.
        fraction: the share to hold out, in [0, 1).
        seed: components are taken in an order that follows from it and their tasks' ids, each that still fits.
        ignore: entities to leave out by name, by name and value, or by pattern (`user`, `user:ada`, `flight:HAT*`).
        most: leaves out entities that more than this share of all tasks have, in [0, 1).

    Raises:
        TaskError: a fraction or a share that is not in [0, 1).

    >>> entities = {"a": "order:1", "b": "order:1", "c": "order:2"}
    >>> tasks = [Task(id=name, entities=[entity]) for name, entity in entities.items()]
    >>> [len(side) for side in (split(tasks, fraction=0.4).train, split(tasks, fraction=0.4).held_out)]
    [2, 1]
    """
    for name, value in (("fraction", fraction), ("most", most)):
        if value is not None and not 0 <= value < 1:
            raise TaskError(f"{name} is {value}; expected a share of the tasks, 0 or more and less than 1")
    compared, ignored = _without(tasks, tuple(ignore), most)
    components = _components(compared)
    wanted = math.floor(fraction * len(compared) + 1e-9)
    held: set[int] = set()
    for component in sorted(
        components, key=lambda component: _rank(seed, min(compared[index].id for index in component))
    ):
        if len(held) + len(component) <= wanted:
            held.update(component)
    sizes = tuple(sorted(map(len, components), reverse=True))
    return Split(
        train=tuple(task for index, task in enumerate(compared) if index not in held),
        held_out=tuple(task for index, task in enumerate(compared) if index in held),
        components=sizes,
        entities=len({entity for task in compared for entity in task.entities}),
        ignored=ignored,
        note=_note(compared, components, wanted, len(held)),
    )


def _without(tasks: Sequence[Task], ignore: tuple[str, ...], most: float | None) -> tuple[list[Task], int]:
    """The tasks without the entities that are left out, and how many those are."""
    counts = Counter(entity for task in tasks for entity in set(task.entities))
    gone = {
        entity
        for entity in counts
        if matches(entity, ignore) or (most is not None and counts[entity] > most * len(tasks))
    }
    if not gone:
        return list(tasks), 0
    return [
        task.model_copy(update={"entities": tuple(one for one in task.entities if one not in gone)}) for task in tasks
    ], len(gone)


def _components(tasks: Sequence[Task]) -> list[list[int]]:
    """The indices of the tasks that belong together."""
    parents = list(range(len(tasks)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    owner: dict[str, int] = {}
    for index, task in enumerate(tasks):
        for entity in task.entities:
            parents[root(index)] = root(owner.setdefault(entity, index))
    found: dict[int, list[int]] = {}
    for index in range(len(tasks)):
        found.setdefault(root(index), []).append(index)
    return list(found.values())


def _note(tasks: Sequence[Task], components: list[list[int]], wanted: int, held: int) -> str | None:
    if held >= wanted:
        return None
    largest = max(components, key=len)
    sentence = (
        f"{held} of the {wanted} tasks wanted are held out: one component holds {len(largest)} of {len(tasks)} tasks"
    )
    counts = Counter(entity for index in largest for entity in set(tasks[index].entities))
    if len(largest) == 1 or not counts:
        return sentence
    entity, count = max(counts.items(), key=lambda one: (one[1], one[0]))
    return (
        f"{sentence}; what links most of them is {entity}, in {count}: if it is no one's own, leave it out (ignore"
        f" {entity!r}, or its name)"
    )


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()


__all__ = ["Split", "split"]
