"""Laws of whole scores, over random dialogues and checklists (hypothesis)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.scoring import shaping
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.rewards.talk import call, say, trace, turn

TOOLS = ("look", "book", "pay")


def fails(view: View) -> bool:
    raise LookupError("a check that cannot tell")


calls = st.builds(lambda tool, error: call(tool, error=error), st.sampled_from(TOOLS), st.booleans())
steps = calls | st.just(say("Here you are"))
dialogues = st.builds(
    lambda turns, extra: trace(*(turn("Go on", *own) for own in turns), **extra),
    st.lists(st.lists(steps, min_size=1, max_size=4), min_size=1, max_size=3),
    st.sampled_from([{}, {"cm2_cut": "steps"}, {"cm2_task_turns": 3}, {"cm2_task_turns": 3, "cm2_cut": "steps"}]),
)
checks = st.one_of(
    st.builds(lambda tool: {"called": tool}, st.sampled_from(TOOLS)),
    st.builds(lambda tool: {"never_called": tool}, st.sampled_from(TOOLS)),
    st.sampled_from([{"no_tool_error": True}, {"at_most": 2}, {"replied": True}, fails]),
)


@st.composite
def checklists(draw: st.DrawFn) -> Checklist:
    made: list[Item] = []
    for number, check in enumerate(draw(st.lists(checks, min_size=1, max_size=6))):
        scope: Any = draw(st.sampled_from([0, 1, "each", "trace"]))
        tool = check["called"] if isinstance(check, dict) and "called" in check else None
        parents = [
            one.id
            for one in made
            if one.turn == scope
            and isinstance(one.check, dict)
            and one.check.get("called") not in (None, tool)
            and tool is not None
        ]
        after = draw(st.lists(st.sampled_from(parents), unique=True)) if parents else []
        made.append(Item(f"i{number}", check=check, turn=scope, weight=draw(st.integers(1, 5)), depends_on=after))
    return Checklist(*made)


@given(checklists(), dialogues, st.floats(0, 0.9))
def test_a_reward_is_in_the_unit_interval_or_null_for_a_reason(
    checklist: Checklist, one: Trace, tolerance: float
) -> None:
    score = ChecklistScorer(checklist, tolerance=tolerance).score_sync(one)
    assert (score.reward is None) == (score.null_reason is not None)
    assert score.reward is None or 0 <= score.reward <= 1
    for scope in score.turns:
        assert sum(verdict.weight for verdict in scope.verdicts) == pytest.approx(1)
        assert (scope.reward is None) == any(verdict.value is None for verdict in scope.verdicts)
        for verdict in scope.verdicts:
            assert (verdict.value is None) == (verdict.paid is None) == (verdict.cause is not None)
            assert (verdict.step is not None) == (verdict.value is True)
            assert verdict.step is None or 1 <= verdict.step <= scope.steps
            assert scope.reached or (verdict.value is False and verdict.paid is False)
            parents = [scope.verdicts[parent] for parent in verdict.depends_on]
            if verdict.paid:
                assert all(
                    parent.step is not None and verdict.step is not None and parent.step < verdict.step
                    for parent in parents
                )


@given(checklists(), dialogues, st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_matter(checklist: Checklist, one: Trace, random: Any) -> None:
    items = list(checklist.items)
    random.shuffle(items)
    first, second = (
        ChecklistScorer(checklist).score_sync(one),
        ChecklistScorer(Checklist(*items, name=checklist.name, version=checklist.version)).score_sync(one),
    )
    assert second.reward == (None if first.reward is None else pytest.approx(first.reward, abs=1e-12))

    def found(score: Score) -> dict[tuple[int | None, str], Any]:
        return {
            (scope.turn, verdict.item): (verdict.value, verdict.step, verdict.paid)
            for scope in score.turns
            for verdict in scope.verdicts
        }

    assert found(first) == found(second)


@given(checklists(), dialogues)
def test_a_score_is_what_the_matrices_say(checklist: Checklist, one: Trace) -> None:
    """Eq. 2 and 6 on the satisfaction matrix give what the scorer stored."""
    for scope in ChecklistScorer(checklist).score_sync(one).turns:
        if scope.reward is None or not scope.reached:
            continue
        matrix = shaping.matrix([verdict.step for verdict in scope.verdicts], scope.steps)
        r = shaping.payment(matrix, [verdict.depends_on for verdict in scope.verdicts])
        assert shaping.turn_reward(
            np.logical_or.reduce(r, axis=0).tolist(), [verdict.weight for verdict in scope.verdicts]
        ) == pytest.approx(scope.reward, abs=1e-12)


@given(checklists(), dialogues)
def test_scoring_again_and_from_json_gives_the_same(checklist: Checklist, one: Trace) -> None:
    first = ChecklistScorer(checklist).score_sync(one)
    assert ChecklistScorer(checklist).score_sync(Trace.from_json(one.to_json())) == first
    assert Score.from_json(first.to_json()) == replace(first)
