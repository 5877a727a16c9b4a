"""The worked groups of CM2_CREDIT_VECTORS (unset: the copy beside this file): every quantity of docs/method.md §3–5 to
1e-9, from satisfaction matrices through rewards.shaping, and from Scores through trainers.advantage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm2_agent.rewards.scoring import shaping
from cm2_agent.trainers.advantage import GroupAdvantages, advantages
from cm2_agent.types.score import Score, TurnScore, Verdict

FILE = Path(os.environ.get("CM2_CREDIT_VECTORS") or Path(__file__).parent / "credit.json")
VECTORS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
CASES = list(enumerate(VECTORS["cases"]))
NULL_CASES = list(enumerate(VECTORS["null_cases"]))
LEVELS = ("trajectory", "turn", "step", "return_to_go", "evidence")


def test_the_file_holds_cases() -> None:
    assert CASES
    assert NULL_CASES
    assert {level for _, case in CASES for want in case["expect"].values() for level in want["advantages"]} == set(
        LEVELS
    )


def turn_score(turn: int, spec: dict[str, Any], sat: list[list[bool]] | None) -> TurnScore:
    weights = shaping.normalised(spec["weights"])
    if sat is None:
        verdicts = [
            Verdict(item=item, value=False, weight=weight, paid=False, depends_on=tuple(deps), reason="gate")
            for item, weight, deps in zip(spec["items"], weights, spec["deps"], strict=True)
        ]
        return TurnScore(turn=turn, reached=False, steps=0, reward=0.0, verdicts=tuple(verdicts))
    matrix = np.array(sat, dtype=bool).reshape(len(sat), len(spec["items"]))
    flips = shaping.first_true_steps(matrix)
    paid = np.logical_or.reduce(shaping.payment(matrix, spec["deps"]), axis=0)
    return TurnScore(
        turn=turn,
        reached=True,
        steps=len(sat) - 1,
        reward=shaping.turn_reward(paid.tolist(), weights),
        verdicts=tuple(
            Verdict(item=item, value=flip is not None, weight=weight, step=flip, paid=bool(one), depends_on=tuple(deps))
            for item, weight, deps, flip, one in zip(spec["items"], weights, spec["deps"], flips, paid, strict=True)
        ),
    )


def scores_of(case: dict[str, Any]) -> list[Score]:
    scores = []
    for index, rollout in enumerate(case["rollouts"]):
        full = [*rollout, *[None] * (len(case["checklist"]) - len(rollout))]
        turns = tuple(
            turn_score(turn, spec, sat) for turn, (spec, sat) in enumerate(zip(case["checklist"], full, strict=True))
        )
        reward = shaping.trajectory_reward([turn.reward or 0.0 for turn in turns], len(turns))
        scores.append(Score(trace_id=str(index), reward_version="vectors", reward=reward, turns=turns))
    return scores


def close(left: Any, right: Any) -> None:
    np.testing.assert_allclose(np.array(left, dtype=float), np.array(right, dtype=float), rtol=0, atol=1e-9)


def cells(want: Any) -> list[tuple[int, Any]]:
    """The turns that the file has a value for: null, or nothing at the end, is a turn that was not reached."""
    return [(turn, value) for turn, value in enumerate(want) if value is not None]


@pytest.mark.parametrize(("number", "case"), CASES)
@pytest.mark.parametrize("norm", ["none", "std"])
def test_rewards(number: int, case: dict[str, Any], norm: str) -> None:
    want = case["expect"][norm]
    for score, turns, reward in zip(scores_of(case), want["turn_rewards"], want["trajectory_rewards"], strict=True):
        reached = {turn.turn: turn.reward for turn in score.turns if turn.reached}
        assert [turn for turn, _ in cells(turns)] == sorted(turn for turn in reached if turn is not None)
        for turn, value in cells(turns):
            close(reached[turn], value)
        close(score.reward, reward)
        close(shaping.stored_reward([shaping.Share.of(turn.verdicts) for turn in score.turns]), reward)


@pytest.mark.parametrize(("number", "case"), CASES)
@pytest.mark.parametrize("norm", ["none", "std"])
@pytest.mark.parametrize("level", LEVELS)
def test_advantages(number: int, case: dict[str, Any], norm: Any, level: Any) -> None:
    if level not in case["expect"][norm]["advantages"]:
        assert level in ("return_to_go", "evidence"), "these two know no norm; the file must hold every other level"
        assert norm == "std"
        return
    want = case["expect"][norm]["advantages"][level]
    got = advantages(scores_of(case), level=level, norm=norm)
    assert len(got.rollouts) == len(want)
    for rollout, expected in zip(got.rollouts, want, strict=True):
        assert rollout.left_out is None
        if level == "trajectory":
            close(rollout.scalar, expected)
            assert all(value == rollout.scalar for values in rollout.steps.values() for value in values)
            continue
        assert [turn for turn, _ in cells(expected)] == sorted(rollout.steps)
        for turn, value in cells(expected):
            steps = rollout.steps[turn]
            close(steps, value if isinstance(value, list) else [value] * len(steps))
            assert all(rollout(turn, step) == one for step, one in enumerate(steps))


@pytest.mark.parametrize(("number", "case"), CASES)
def test_a_level_is_informative_where_the_file_has_a_number(number: int, case: dict[str, Any]) -> None:
    for level, want in case["expect"]["none"]["advantages"].items():
        got: GroupAdvantages = advantages(scores_of(case), level=level)
        assert got.informative == any(abs(value) >= 1e-9 for value in flat(want)), level


def flat(value: Any) -> list[float]:
    if value is None:
        return []
    return [float(value)] if isinstance(value, int | float) else [one for part in value for one in flat(part)]


def null_scores(case: dict[str, Any], cause: Any) -> list[Score]:
    scores = []
    for index, rollout in enumerate(case["paid"]):
        turns = []
        for turn, (weights, paid) in enumerate(zip(case["weights"], rollout, strict=True)):
            row = [0] * len(weights) if paid is None else paid
            verdicts = tuple(
                Verdict(
                    item=f"C{place}",
                    value=None if one is None else bool(one),
                    weight=weight,
                    step=1 if one else None,
                    paid=None if one is None else bool(one),
                    cause=cause if one is None else None,
                )
                for place, (weight, one) in enumerate(zip(weights, row, strict=True))
            )
            reached = paid is not None
            turns.append(TurnScore(turn=turn, reached=reached, steps=int(reached), reward=None, verdicts=verdicts))
        reward = shaping.stored_reward([shaping.Share.of(turn.verdicts) for turn in turns])
        reason = "verdicts" if reward is None else None
        scores.append(
            Score(trace_id=str(index), reward_version="vectors", reward=reward, turns=tuple(turns), null_reason=reason)
        )
    return scores


@pytest.mark.parametrize(("number", "case"), NULL_CASES)
def test_null_cases(number: int, case: dict[str, Any]) -> None:
    """The file centres each item over the rollouts that judged it, which lets a NULL do better than a failure. Its
    numbers hold where nothing is NULL; a NULL that the policy caused is a 0, and another leaves the group out."""
    got = [rollout.scalar for rollout in advantages(null_scores(case, "content")).rollouts]
    paid = [[[float(one or 0) for one in turn or ()] for turn in rollout] for rollout in case["paid"]]
    rewards = [
        sum(
            sum(w * p for w, p in zip(weights, turn, strict=False))
            for weights, turn in zip(case["weights"], rollout, strict=True)
        )
        / len(case["weights"])
        for rollout in paid
    ]
    mean = sum(rewards) / len(rewards)
    close(got, [reward - mean for reward in rewards])
    pending = advantages(null_scores(case, "infrastructure"))
    if any(one is None for rollout in case["paid"] for turn in rollout for one in turn or ()):
        assert all(rollout.left_out for rollout in pending.rollouts)
    else:
        close(got, case["expect"])
        close([rollout.scalar for rollout in pending.rollouts], case["expect"])
