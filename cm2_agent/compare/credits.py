"""Credits of the arms that change advantages: clipped from below at 0, or permuted among the rollouts of a group."""

from __future__ import annotations

import random

from cm2_agent.trainers.dataset import Credits, by_level
from cm2_agent.trainers.rows import Credit
from cm2_agent.types.group import Group


def positive(level: str) -> Credits:
    """The advantages of a level, those below 0 as 0."""
    given = by_level(level, "none")

    def credits(group: Group) -> list[Credit | str]:
        return [one if isinstance(one, str) else _at_least_zero(one) for one in given(group)]

    return credits


def shuffled(level: str, seed: int) -> Credits:
    """The advantages of a level, those of each rollout given to another of its group, turn for turn.

    A rollout that is `left_out` stays so. Where the other's turn has fewer steps, its last step counts on; where it has
    none, 0.
    """
    given = by_level(level, "none")

    def credits(group: Group) -> list[Credit | str]:
        found = given(group)
        places = [place for place, one in enumerate(found) if not isinstance(one, str)]
        drawn = list(places)
        random.Random(f"shuffled:{seed}:{group.task_id}").shuffle(drawn)
        from_other = dict(zip(places, drawn, strict=True))
        lengths = [[len(turn.steps) for turn in rollout.trace.turns] for rollout in group.rollouts]
        mixed: list[Credit | str] = []
        for place, one in enumerate(found):
            other = found[from_other[place]] if place in from_other else one
            mixed.append(one if isinstance(other, str) else _of_other(other, lengths[from_other[place]]))
        return mixed

    return credits


def _at_least_zero(credit: Credit) -> Credit:
    return lambda turn, step: max(0.0, credit(turn, step))


def _of_other(credit: Credit, lengths: list[int]) -> Credit:
    def found(turn: int, step: int) -> float:
        if turn >= len(lengths) or not lengths[turn]:
            return 0.0
        return credit(turn, min(step, lengths[turn] - 1))

    return found
