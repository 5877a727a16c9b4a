"""V̂ of a round: it comes near what the verdicts tell, and nothing that a rollout does moves the baseline of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cm2_agent.trainers.episodes import Episode
from cm2_agent.trainers.values import FEWEST, cross_fitted_values
from cm2_agent.types.group import Group
from tests.trainers.trees import KNOWN, TREES, TURNS, Tree


def episodes(groups: list[Group]) -> list[list[Episode]]:
    return [[Episode.of(one.score, one.trace) for one in group.rollouts] for group in groups]


def missed(tree: Tree, groups: list[Group], values: Any) -> float:
    """The mean square of V̂ less E[return | turn, verdicts before it]."""
    table = tree.values(KNOWN["verdicts"])
    found = []
    for group, own in zip(groups, values, strict=True):
        for rollout, value_T in zip(group.rollouts, own, strict=True):
            shown = tuple(int(turn.reward or 0) for turn in rollout.score.turns if turn.reached)
            found += [(float(value) - table[at, shown[:at]]) ** 2 for at, value in enumerate(value_T)]
    return float(np.mean(found))


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.name)
def test_the_fit_comes_near_what_the_verdicts_tell(tree: Tree) -> None:
    groups = tree.sampled(36, 8, seed=3)
    made = episodes(groups)
    few = cross_fitted_values(made[: FEWEST - 1])
    mean = missed(tree, groups[: FEWEST - 1], few)  # too few groups: the others' mean
    found = missed(tree, groups, cross_fitted_values(made))
    assert found < min(0.003, mean / 2)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.name)
def test_nothing_that_a_rollout_does_moves_its_own_baseline(tree: Tree) -> None:
    """From turn t on it is another dialogue that began alike: V̂ of turn t is the same."""
    groups = tree.sampled(6, 4, seed=1)
    pairs = 0
    for one, other in itertools.combinations(tree.dialogues, 2):
        found = []
        for first in (one, other):
            changed = replace(groups[2], rollouts=(tree.rollout(first, "changed"), *groups[2].rollouts[1:]))
            found.append(cross_fitted_values(episodes([*groups[:2], changed, *groups[3:]])))
        for at in range(len(one.rewards)):
            if at < len(other.rewards) and one.before(at) == other.before(at):
                pairs += 1
                assert found[0][2][0][at] == pytest.approx(found[1][2][0][at], abs=1e-12)
    assert pairs >= 3


def test_empty_groups_and_rollouts_without_a_turn() -> None:
    made = episodes(TREES[0].sampled(5, 2, seed=0))
    nothing = replace(
        made[0][0],
        turns=(),
        steps=(),
        rewards_T=np.zeros(0),
        history_TF=made[0][0].history_TF[:0],
        verdicts_TC=made[0][0].verdicts_TC[:0],
        own_TC=made[0][0].own_TC[:0],
        words_TW=made[0][0].words_TW[:0],
    )
    values = cross_fitted_values([[], [nothing, made[0][1]], *made[1:]])
    assert [len(one) for one in values] == [0, 2, 2, 2, 2, 2]
    assert [one.shape for one in values[1]] == [(0,), (TURNS,)]
    assert all(((value >= 0) & (value <= 1)).all() for own in values for value in own)
