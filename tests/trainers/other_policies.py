"""Other policies on the small trees, whose true worth is enumerated, and samples of the trees weighed for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cm2_agent.trainers.episodes import Episode
from cm2_agent.trainers.off_policy_values import WeighedRollout
from cm2_agent.trainers.values import cross_fitted_values
from tests.trainers.trees import Dialogue, State, Tree, Vector

LIMIT = 0.15
"""The share of effective rollouts, in expectation, of the policy that is as far away as may be."""


@dataclass(frozen=True, kw_only=True)
class OtherPolicy:
    """A policy of the tree's choices: by state, the chances that it gives them."""

    tree: Tree
    chances: Mapping[State, Vector]

    @classmethod
    def tilted(cls, tree: Tree, tilt: Callable[[State], Vector | float]) -> OtherPolicy:
        """With the tree's own logits plus `tilt`."""
        found = {}
        for state, chances in tree.states.items():
            weights = chances * np.exp(tilt(state))
            found[state] = weights / weights.sum()
        return cls(tree=tree, chances=found)

    @classmethod
    def towards_right(cls, tree: Tree, by: float) -> OtherPolicy:
        """Logits of right choices higher by so much; of a choice of two, half as much for each that is right."""
        right = {2: np.array([0.0, 1.0]), 4: np.array([0.0, 0.5, 0.5, 1.0])}
        return cls.tilted(tree, lambda state: by * right[len(tree.states[state])])

    @classmethod
    def at_the_limit(cls, tree: Tree) -> OtherPolicy:
        """Towards the rarest dialogue, until no more than LIMIT of the rollouts count."""
        rarest = dict(min(tree.dialogues, key=lambda one: one.chance).choices)

        def policy(by: float) -> OtherPolicy:
            return cls.tilted(tree, lambda state: by * (np.arange(len(tree.states[state])) == rarest.get(state, -1)))

        low, high = 0.0, 20.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if policy(middle).share > LIMIT else (low, middle)
        return policy(high)

    def log_ratios(self, one: Dialogue) -> Vector:
        """log π_new − log μ of each turn."""
        return np.array(
            [math.log(self.chances[state][action] / self.tree.states[state][action]) for state, action in one.choices]
        )

    def ratio(self, one: Dialogue) -> float:
        return math.exp(float(self.log_ratios(one).sum()))

    @cached_property
    def worth(self) -> float:
        """E[R] under it, exactly."""
        return math.fsum(one.chance * self.ratio(one) * one.returns[0] for one in self.tree.dialogues)

    @cached_property
    def share(self) -> float:
        """The effective share of rollouts, of endlessly many."""
        return 1 / math.fsum(one.chance * self.ratio(one) ** 2 for one in self.tree.dialogues)


def episodes(tree: Tree) -> list[Episode]:
    """The tree's dialogues as they are stored and scored."""
    rollouts = [tree.rollout(one, f"d{at}") for at, one in enumerate(tree.dialogues)]
    return [Episode.of(one.score, one.trace) for one in rollouts]


def draw(tree: Tree, tasks: int, size: int, rng: np.random.Generator) -> list[list[int]]:
    """Dialogues of the tree by their place, `size` of each task."""
    chances = np.array([one.chance for one in tree.dialogues])
    found: list[list[int]] = rng.choice(len(chances), size=(tasks, size), p=chances / chances.sum()).tolist()
    return found


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Drawn dialogues (by task: the tree's number and the places of its dialogues), with V̂ of each turn."""

    tasks: Sequence[tuple[int, Sequence[int]]]
    values: Sequence[Sequence[Vector]]

    @classmethod
    def of(cls, tasks: Sequence[tuple[int, Sequence[int]]], known: Sequence[Sequence[Episode]]) -> Sample:
        return cls(tasks=tasks, values=cross_fitted_values([[known[at][one] for one in own] for at, own in tasks]))

    def weighed(self, policies: Sequence[OtherPolicy]) -> list[WeighedRollout]:
        """For a policy of each tree."""
        tables = [
            [(np.array(one.rewards), policy.log_ratios(one)) for one in policy.tree.dialogues] for policy in policies
        ]
        found = []
        for number, ((at, own), values) in enumerate(zip(self.tasks, self.values, strict=True)):
            for one, value in zip(own, values, strict=True):
                rewards, logs = tables[at][one]
                found.append(WeighedRollout(task=f"t{number}", rewards_T=rewards, values_T=value, log_ratios_T=logs))
        return found
