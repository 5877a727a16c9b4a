"""The dataset of groups: advantages reach their tokens, and what is left out is counted with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cm2_agent.errors import TrainError
from cm2_agent.trainers.advantage import GROUP_PENDING
from cm2_agent.trainers.dataset import build_dataset, count_rows
from cm2_agent.trainers.retokenize import rows_from_text
from cm2_agent.trainers.rows import TEXT_ONLY, TOO_LONG, Row
from cm2_agent.trainers.validation import too_long
from cm2_agent.types.group import Group
from cm2_agent.types.run import RunFailure
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests.trainers.dialogues import group, merged, words


def test_too_long_is_left_out_and_never_cut() -> None:
    assert build_dataset([group([1.0, 0.0])], drop=[too_long(11)]).report.left_out == {}
    assert build_dataset([group([1.0, 0.0])], drop=[too_long(10)]).report.left_out == {TOO_LONG: 2}


def test_the_report_counts_what_is_trained_and_why_the_rest_is_not() -> None:
    text_only = replace(words(), id="t3")
    mixed = group([1.0, 0.0, 0.5], [replace(merged(), id=f"t{n}") for n in range(2)] + [text_only])
    flat = group([0.5, 0.5])
    pending = group([1.0, None], [merged(), merged()])
    dataset = build_dataset([mixed, flat, pending])
    assert dataset.report.to_json() == {
        "groups": 3,
        "informative_groups": 1,
        "rows": 4,
        "trained_tokens": 24,
        "masked_tokens": 20,
        "pending_groups": 1,
        "lower": 0.5,
        "upper": 0.5,
        "left_out": {"no reward: failure": 1, GROUP_PENDING: 1, TEXT_ONLY: 1},
        "nulls": {
            "v1": {"traces": 6, "pending": 1, "unknown_share": 0.0, "causes": {}, "cuts": {}},
            "unknown": {"traces": 1, "pending": 0, "unknown_share": 0.0, "causes": {}, "cuts": {}},
        },
    }
    json.dumps(dataset.report.to_json())
    assert [span.advantage for row in dataset.groups[0].rows for span in row.spans] == pytest.approx(
        [0.5] * 3 + [-0.5] * 3
    )


@pytest.mark.parametrize("level", ["trajectory", "auto"])
def test_rows_that_are_counted_as_they_go_by_are_those_of_the_dataset(level: str) -> None:
    text_only = replace(words(), id="t3")
    mixed = group([1.0, 0.0, 0.5], [replace(merged(), id=f"t{n}") for n in range(2)] + [text_only])
    groups = [mixed, group([0.5, 0.5]), group([1.0, None], [merged(), merged()])]
    dataset = build_dataset(groups, level=level)
    assert count_rows(iter(groups), level=level) == (dataset.report, dataset.longest_row)
    assert dataset.longest_row > 0
    with pytest.raises(TrainError, match="no group was given"):
        count_rows([], level=level)


def test_with_a_tokenizer_text_only_traces_become_marked_rows(tokenizer: Any) -> None:
    dataset = build_dataset(
        [group([1.0, 0.0], [merged(), replace(words(), id="w")])], from_text=rows_from_text(tokenizer)
    )
    assert [row.retokenised for row in dataset.groups[0].rows] == [False, True]
    assert dataset.report.to_json()["retokenised_rows"] == 1
    assert dataset.report.left_out == {}
    assert build_dataset(
        [group([1.0, 0.0], [merged(), words()])], from_text=rows_from_text(tokenizer), drop=[too_long(20)]
    ).report.left_out == {TOO_LONG: 1}


def test_advantages_are_of_all_scored_rollouts_also_of_those_left_out() -> None:
    dataset = build_dataset([group([1.0, 0.0, 0.2], [merged(), words(), words()])])
    assert dataset.groups[0].rows[0].spans[0].advantage == pytest.approx(0.6)


def test_advantages_of_a_level_reach_the_steps_they_are_for() -> None:
    def by_turn(group: Group) -> list[Callable[[int, int], float]]:
        return [lambda turn, step: 1.0 if (turn, step) == (0, 1) else -2.0 for _ in group.rollouts]

    (row,) = build_dataset([group([1.0])], credits=by_turn).groups[0].rows
    assert row.advantages == (0, 0, -2, -2, 0, 1, 0, 0, -2, -2, -2)


def test_the_turn_level_gives_each_turn_its_own_advantage() -> None:
    def score(trace: Trace, paid: tuple[bool, bool]) -> Score:
        turns = tuple(
            TurnScore(
                turn=number,
                reached=True,
                steps=steps,
                reward=float(yes),
                verdicts=(Verdict(item=f"i{number}", value=yes, weight=1.0, step=1 if yes else None, paid=yes),),
            )
            for number, (yes, steps) in enumerate(zip(paid, (2, 1), strict=True))
        )
        return Score(trace_id=trace.id, reward_version="r1", reward=sum(paid) / 2, turns=turns)

    given = group([0.5, 0.5])
    scored = tuple(
        replace(one, score=score(one.trace, paid))
        for one, paid in zip(given.rollouts, ((True, False), (False, True)), strict=True)
    )
    made = replace(given, rollouts=scored)
    assert not build_dataset([made]).groups[0].informative  # worth the same as a whole
    first, second = build_dataset([made], level="turn").groups[0].rows
    assert first.advantages == (0, 0, 0.5, 0.5, 0, 0.5, 0, 0, -0.5, -0.5, -0.5)
    assert second.advantages == tuple(-value for value in first.advantages)


def test_no_group_no_rollout_and_mixed_rewards_are_refused() -> None:
    with pytest.raises(TrainError, match="no group"):
        build_dataset([])
    with pytest.raises(TrainError, match="none holds a rollout"):
        build_dataset([group([])])
    with pytest.raises(TrainError, match="2 reward versions: r1, r2"):
        build_dataset([group([1.0, 0.0]), group([1.0], reward="r2")])


def test_a_failed_dialogue_leaves_its_group_out() -> None:
    crashed = replace(
        merged(), runs=(replace(merged().runs[0], failure=RunFailure(kind="ToolError", message="x"), status="error"),)
    )
    dataset = build_dataset([group([1.0, None, 0.0], [merged(), crashed, merged()]), group([1.0, 0.0])])
    assert dataset.report.left_out == {"no reward: failure": 1, GROUP_PENDING: 2}
    assert [one.pending for one in dataset.groups] == [True, False]
    assert all(isinstance(row, Row) for row in dataset.groups[1].rows)
