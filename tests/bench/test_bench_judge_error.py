"""The benchmark of the judge-error budget: verdicts are turned round as it says, and a small grid runs and goes on
where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.rewards.scoring.shaping import matrix, payment, turn_reward
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from tests.bench.bench_judge_error import BIASED, ERRORS, LEVELS, QUICK, WrongJudge, cells, draw, run_grid
from tests.rewards.talk import call, say, trace, turn

CHECKLIST = Checklist(
    Item("looks", check={"called": "look"}),
    Item("books", check={"called": "book"}, depends_on=["looks"], weight=2),
    Item(BIASED, check={"replied": True}, depends_on=["looks"]),
    Item("never_pays", check={"never_called": "pay"}),
)
TRACE = trace(
    turn("Go", call("look"), call("book"), say("Done")), turn("And?", call("book"), call("nothing")), cm2_task_turns=3
)
RIGHT = ChecklistScorer(CHECKLIST).score_sync(TRACE)


@given(st.sampled_from(["symmetric", "biased"]), st.floats(0, 1), st.integers(0, 99))
def test_what_follows_from_a_wrong_verdict_follows(kind: str, error: float, seed: int) -> None:
    wrong = WrongJudge(CHECKLIST, kind, error, seed).score(TRACE, RIGHT)
    assert wrong == WrongJudge(CHECKLIST, kind, error, seed).score(TRACE, RIGHT)
    for own, right in zip(wrong.turns, RIGHT.turns, strict=True):
        if not right.reached:
            assert own == right
            continue
        deps = [verdict.depends_on for verdict in own.verdicts]
        r = payment(matrix([verdict.step for verdict in own.verdicts], own.steps), deps)
        assert own.reward == pytest.approx(
            turn_reward(np.logical_or.reduce(r, axis=0).tolist(), [verdict.weight for verdict in own.verdicts])
        )
        for verdict, was in zip(own.verdicts, right.verdicts, strict=True):
            assert (verdict.step is not None) == verdict.value
            assert not (verdict.value and any(not own.verdicts[parent].value for parent in verdict.depends_on))
            assert kind == "symmetric" or verdict.item == BIASED or verdict == was
    assert wrong.reward == pytest.approx(sum(one.reward or 0 for one in wrong.turns) / 3)


def test_no_error_changes_nothing_and_every_error_turns_all() -> None:
    same = WrongJudge(CHECKLIST, "symmetric", 0.0, 0).score(TRACE, RIGHT)
    assert [turn.to_json() for turn in same.turns] == [turn.to_json() for turn in RIGHT.turns]
    assert same.reward == RIGHT.reward
    judge = WrongJudge(CHECKLIST, "symmetric", 1.0, 0)
    flipped = judge.score(TRACE, RIGHT)
    assert (judge.seen, judge.turned) == (8, 8)
    assert [verdict.value for verdict in flipped.turns[0].verdicts] == [False] * 4
    # looks is wrongly true, books and the absence wrongly false; there was no reply, so the lenient answer is true
    assert [verdict.value for verdict in flipped.turns[1].verdicts] == [True, False, True, False]


def test_the_rate_is_the_rate() -> None:
    judge = WrongJudge(CHECKLIST, "symmetric", 0.2, 0)
    for number in range(500):
        one = trace(turn("Go", call("look"), say("Done")), id=f"t{number}", cm2_task_turns=1)
        judge.score(one, ChecklistScorer(CHECKLIST).score_sync(one))
    assert judge.seen == 2000
    assert 340 <= judge.turned <= 460  # 400 ± 3.4 standard deviations, and the draws are seeded


def test_the_grid_is_the_issues() -> None:
    grid = cells()
    assert len(grid) == len({cell.name for cell in grid}) == 81
    assert {cell.error for cell in grid} == set(ERRORS) == {0.0, 0.05, 0.1, 0.2, 0.3}
    assert {cell.level for cell in grid} == set(LEVELS)


@pytest.mark.slow
def test_a_small_grid_runs_and_goes_on(tmp_path: Path) -> None:
    grid = cells(errors=(0.0, 0.3), kinds=("symmetric",), seeds=(0,))
    first = run_grid(tmp_path, grid[:4], QUICK, 6)
    assert first["cells"] == 4
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    whole = run_grid(tmp_path, grid, QUICK, 6)
    assert (tmp_path / "cells.jsonl").read_text().splitlines()[: len(lines)] == lines
    assert whole["cells"] == 6
    assert {row["level"] for row in map(json.loads, lines[1:])} == set(LEVELS)
    assert {error for level in whole["success"]["symmetric"].values() for error in level} == {"0", "0.3"}
    assert run_grid(tmp_path, grid, QUICK, 6) == whole
    assert draw(whole, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
