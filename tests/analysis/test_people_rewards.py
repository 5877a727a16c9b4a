"""The reward by people's answers: what changes with a label, what waits for it, and what cannot be told."""

from __future__ import annotations

import pytest

from cm2_agent.analysis.people_rewards import people_reward
from cm2_agent.types.human_labels import LabelKey
from cm2_agent.types.score import Score, TurnScore, Verdict


def verdict(item: str, value: bool | None, weight: float, **given: object) -> Verdict:
    shared: dict[str, object] = {"paid": value, "cause": "content" if value is None else None} | given
    return Verdict(item=item, value=value, weight=weight, step=1 if value else None, **shared)  # type: ignore[arg-type]


def score(*verdicts: Verdict, reward: float | None = None, turns: int = 1) -> Score:
    known = [one for one in verdicts if one.pays is not None]
    earned = sum(one.weight * (one.pays or 0) for one in known) / sum(one.weight for one in known)
    blocks = tuple(
        TurnScore(turn=turn, reached=True, steps=1, reward=earned, verdicts=verdicts) for turn in range(turns)
    )
    return Score(trace_id="t", reward_version="r", reward=earned if reward is None else reward, turns=blocks)


CHAIN = (verdict("a", True, 0.5), verdict("b", True, 0.3, depends_on=(0,)), verdict("c", False, 0.2))


def test_a_label_takes_the_verdicts_place() -> None:
    assert people_reward(score(*CHAIN), {("t", 0, "a"): True, ("t", 0, "b"): True, ("t", 0, "c"): True}) == 1.0
    assert people_reward(score(*CHAIN), {("t", 0, "a"): True, ("t", 0, "b"): False, ("t", 0, "c"): False}) == 0.5


def test_what_depends_on_a_false_item_is_not_paid() -> None:
    """b is as people say and as the judge said, and rests on a, which people call false."""
    assert people_reward(
        score(*CHAIN), {("t", 0, "a"): False, ("t", 0, "b"): True, ("t", 0, "c"): True}
    ) == pytest.approx(0.2)


def test_a_soft_dependency_pays_its_share() -> None:
    soft = (verdict("a", True, 0.5), verdict("b", True, 0.5, depends_on=(0,), soft=(0.6,)))
    assert people_reward(score(*soft), {("t", 0, "a"): False, ("t", 0, "b"): True}) == pytest.approx(0.3)
    part = (verdict("a", False, 0.5), verdict("b", True, 0.5, depends_on=(0,), soft=(0.6,), payment=0.6))
    assert people_reward(score(*part), {("t", 0, "a"): False, ("t", 0, "b"): True}) == pytest.approx(0.3)
    assert people_reward(score(*part), {("t", 0, "a"): True, ("t", 0, "b"): True}) == 1.0


def test_any_of_others_follows_them() -> None:
    """`right` is either of two ways; a person says that the way which the judge saw was not taken, or that it was."""
    ways = (verdict("one", True, 0.25), verdict("two", False, 0.25), verdict("right", True, 0.5))
    answers: dict[LabelKey, bool] = {("t", 0, "one"): False, ("t", 0, "two"): False}
    of = {"right": ("one", "two")}
    assert people_reward(score(*ways), answers, {"one", "two"}, of) == 0.0
    assert people_reward(score(*ways), {**answers, ("t", 0, "two"): True}, {"one", "two"}, of) == 0.75
    assert people_reward(score(*ways), {**answers, ("t", 0, "one"): True}, {"one", "two"}, of) == 0.75


def test_a_null_that_people_could_answer_counts() -> None:
    unsure = (verdict("a", None, 0.2), verdict("b", True, 0.8))
    assert score(*unsure).reward == 1.0
    assert people_reward(score(*unsure), {("t", 0, "a"): False, ("t", 0, "b"): True}) == pytest.approx(0.8)
    assert people_reward(score(*unsure), {("t", 0, "b"): True}, {"b"}) == pytest.approx(0.8)  # a is a check
    pending = (verdict("a", None, 0.2, cause="infrastructure"), verdict("b", True, 0.8))
    assert people_reward(score(*pending), {("t", 0, "a"): False, ("t", 0, "b"): True}) is None


def test_a_label_without_a_turn_means_the_only_verdict() -> None:
    labels: dict[LabelKey, bool] = {("t", None, "a"): False, ("t", None, "b"): True, ("t", None, "c"): True}
    assert people_reward(score(*CHAIN), labels) == pytest.approx(0.2)
    assert people_reward(score(*CHAIN, turns=2), labels) is None


def test_all_that_the_judge_decided_must_be_labelled() -> None:
    labels: dict[LabelKey, bool] = {("t", 0, "c"): True}
    assert people_reward(score(*CHAIN), labels) is None
    assert people_reward(score(*CHAIN), labels, {"c"}) == 1.0  # a and b are checks
    assert people_reward(score(*CHAIN), {}, {"c"}) is None
    assert people_reward(score(*CHAIN), {("t", 0, "other"): True}, ()) is None  # nothing of it was labelled
    waiting = (verdict("a", False, 0.5), verdict("b", False, 0.5, depends_on=(0,), reason="dependency"))
    assert people_reward(score(*waiting), {("t", 0, "a"): True}) == 0.5  # b was not asked, and nobody labelled it


def test_another_reward_than_a_checklists_is_left_alone() -> None:
    assert people_reward(score(*CHAIN, reward=0.1), {("t", 0, "a"): True}, {"a"}) is None
    assert people_reward(Score(trace_id="t", reward_version="r", reward=0.5), {("t", 0, "a"): True}) is None
    assert people_reward(Score(trace_id="t", reward_version="r", reward=None, turns=score(*CHAIN).turns), {}) is None
