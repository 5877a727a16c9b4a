"""Imitation turn by turn: who is imitated where, what is masked, and which rewards have no best turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import TrainError
from cm2_agent.trainers import RFT, SFT
from cm2_agent.trainers.best_turns import best_turns, turns_alone
from cm2_agent.trainers.rows import rows_of
from cm2_agent.types.group import Group
from cm2_agent.types.run import RunFailure
from cm2_agent.types.score import Score
from tests.trainers.trees import Tree
from tests.trainers.turns import score, turn

TREE = Tree()


def group_of(*scores: Score, tokenizer: Any = None) -> Group:
    """Rollouts of as many turns as were reached, with these scores."""
    rollouts = []
    for number, worth in enumerate(scores):
        reached = sum(one.reached for one in worth.turns if one.turn is not None)
        path = next(one for one in TREE.dialogues if one.score.trace_id == "101")
        cut = replace(path, choices=path.choices[:reached])
        made = TREE.rollout(cut, f"t{number}", tokenizer)
        rollouts.append(replace(made, score=replace(worth, trace_id=f"t{number}")))
    return Group(key={"task": "a", "policy": "v1", "reward": "v1"}, rollouts=tuple(rollouts))


THIRDS = (0.1, 0.2, 0.7)
MIXED = (
    score(turn(0, 1, 1, 1, None, weights=THIRDS), turn(1, 1, None), turn(2, 1, None)),  # .3 in turn 0, by two items
    score(turn(0, 1, 1, None, None, weights=THIRDS), turn(1, 1, 1), turn(2, 1, None)),
    score(turn(0, 1, None, 1, None, weights=THIRDS), turn(1, 1, 1), turn(2, 0, None)),
    score(turn(0, 1, None, None, None, weights=THIRDS), turn(1, 1, "?"), turn(2, 1, None)),
)


def test_of_each_turn_those_that_earned_the_most() -> None:
    assert best_turns(group_of(*MIXED).rollouts) == [{0}, {1}, {1}, frozenset()]


def test_what_is_not_known_or_failed_takes_no_part() -> None:
    best = score(turn(0, 1, 1))
    half = score(turn(0, 1, 1, None))
    whole = score(turn(0, 1, 1, 1))
    failed, unknown, left = group_of(whole, score(turn(0, 1, 1, "!"), null_reason="verdicts"), half).rollouts
    run = replace(failed.trace.runs[-1], failure=RunFailure(kind="ToolError", message="down"))
    failed = replace(failed, trace=replace(failed.trace, runs=(run,)))
    assert best_turns([failed, unknown, left]) == [frozenset(), frozenset(), {0}]
    assert best_turns([failed]) == [frozenset()]
    assert best_turns(group_of(best, best).rollouts) == [{0}, {0}], "ties"


def test_other_turns_are_masked() -> None:
    rollout = group_of(MIXED[0]).rollouts[0]
    rows = rows_of(rollout.trace, imitation=True)
    assert [span.turn for row in rows for span in row.spans] == [0, 1, 2]
    kept = turns_alone(rows, frozenset({1}))
    assert [row.ids for row in kept] == [row.ids for row in rows], "they are read all the same"
    assert [sum(row.mask) for row in kept] == [2]
    assert turns_alone(rows, frozenset({7})) == []


@pytest.mark.parametrize(
    ("worth", "words"),
    [
        (score(turn(0, 1, 1), turn(None, 1, 1)), r"has a closing block \(C0\)"),
        (replace(score(turn(0, 1, 1)), components={"length": 0.5}), "components of a stack"),
        (Score(trace_id="t", reward_version="v1", reward=1.0), "has no turns"),
    ],
)
def test_rewards_without_turns_of_their_own_are_refused(worth: Score, words: str) -> None:
    rollouts = Tree().sampled(1, 1, seed=0)[0].rollouts
    with pytest.raises(TrainError, match=words):
        best_turns([replace(rollouts[0], score=worth)])


@pytest.mark.parametrize("words", [False, True])
def test_training_on_the_best_turns(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path, words: bool) -> None:
    """By recorded ids and by words alike: rollouts 0, 1 and 2 of MIXED, one turn each."""
    groups = [group_of(*MIXED, tokenizer=tokenizer)]
    sft = SFT(policy(1), tmp_path / "out", tokenizer=tokenizer, select="best-turn", steps=1, retokenise=words)
    assert sft.needs == "groups"
    sft.train(groups)
    assert (sft.report["rollouts"], sft.report["turns"]) == (3, 3)
    assert sft.report["left_out"] == {"no turn of it the best of its group": 1}
    assert sft.report["rows_from"]["words"] == (3 if words else 0)
    nothing = [group_of(*[score(turn(0, 1, None))] * 2, tokenizer=tokenizer)]
    with pytest.raises(TrainError, match="2 × the best of its group earned nothing"):
        RFT(policy(1), tmp_path / "none", tokenizer=tokenizer, select="best-turn").train(nothing)
    with pytest.raises(TrainError, match=r"select='best-turn' chooses by scores, .* without a group"):
        SFT(policy(1), tmp_path / "one", tokenizer=tokenizer, select="best-turn").train(groups[0].rollouts)
