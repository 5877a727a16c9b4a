"""Laws of whole scores where items apply sometimes, rest on others and depend softly (hypothesis)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent import NOT_APPLICABLE
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.not_applicable import NotApplicable
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.rewards.talk import call, say, trace, turn

TOOLS = ("look", "book", "pay")
STATES: tuple[dict[str, Any], ...] = (
    {"value": True},
    {"value": False},
    {"value": None, "cause": "content", "reason": "judge failed"},
    {"value": None, "cause": "infrastructure", "reason": "judge failed"},
)


def booked(view: View) -> bool:
    return view.called("book")


def paid_if_booked(view: View) -> bool | NotApplicable:
    return view.called("pay") if view.called("book") else NOT_APPLICABLE


def fails(view: View) -> bool:
    raise LookupError("it cannot tell")


class Judge:
    """Answers each item with one of the states, by its id."""

    def __init__(self, states: Sequence[int]) -> None:
        self.states = states

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> list[Verdict]:
        return [
            Verdict(item=item.id, weight=0, **STATES[self.states[sum(map(ord, item.id)) % len(self.states)]])
            for item in items
        ]


@st.composite
def checklists(draw: st.DrawFn) -> Checklist:
    """Items of every form, each of which may depend on, or rest on, those before it."""
    made: list[Item] = []
    for number in range(draw(st.integers(1, 6))):
        scope: Any = draw(st.sampled_from([0, "each", "each", "trace"]))
        mates = [one for one in made if one.turn == scope]
        keys: dict[str, Any] = {
            "turn": scope,
            "weight": draw(st.integers(0, 4)) if number else 3,
            "when": draw(
                st.sampled_from([None, None, {"user_matches": "a"}, {"called": "look"}, booked, fails, "Is it so?"])
            ),
        }
        if keys["when"] is not None:
            keys["otherwise"] = draw(st.sampled_from([None, "unpaid", "paid"]))
        form = draw(st.sampled_from(["check", "question", "function", "any_of"]))
        if form == "any_of" and mates:
            keys["any_of"] = [one.id for one in draw(st.lists(st.sampled_from(mates), min_size=1, unique_by=id))]
        elif form == "question":
            keys["question"] = "Was it so?"
        elif form == "function":
            keys["check"] = paid_if_booked
        else:
            keys["check"] = {"called": draw(st.sampled_from(TOOLS))}
        if "any_of" not in keys:
            parents = draw(st.lists(st.sampled_from(mates), max_size=2, unique_by=id)) if mates else []
            keys["depends_on"] = [
                one.id if soft is None else {"item": one.id, "soft": soft}
                for one in parents
                if (one.check is None or one.check != keys.get("check")) and not one.any_of
                for soft in (draw(st.sampled_from([None, 0.25, 0.75])),)
            ]
        made.append(Item(f"i{number}", **keys))
    return Checklist(*made, Item("each", check={"replied": True}), Item("end", check={"replied": True}, turn="trace"))


steps = st.sampled_from([*(call(tool) for tool in TOOLS), say("Yes"), call("look", error=True)])
parts = st.lists(st.lists(steps, min_size=1, max_size=4), min_size=1, max_size=3)
states = st.lists(st.integers(0, 3), min_size=1, max_size=5)
tasks = st.sampled_from([None, Task(id="t", turns=("a", "b", "ab")), Task(id="t", persona="Ada")])
TOLERANCE = 1e-9


def scored(checklist: Checklist, talk: list[list[Any]], answers: list[int], task: Task | None) -> tuple[Trace, Score]:
    made = trace(*(turn(text, *own) for text, own in zip(("a", "b", "ab"), talk, strict=False)))
    return made, asyncio.run(ChecklistScorer(checklist, judge=Judge(answers))(made, task))


@given(checklists(), parts, states, tasks)
def test_scores_and_their_bounds(
    checklist: Checklist, talk: list[list[Any]], answers: list[int], task: Task | None
) -> None:
    _, score = scored(checklist, talk, answers, task)
    for scope in score.turns:
        total = sum(verdict.weight for verdict in scope.verdicts)
        assert total == pytest.approx(1) or (task is None and total == 0 and scope.reward is None)
        for verdict in scope.verdicts:
            if not verdict.applies:
                assert verdict.value is None or task is not None, "left out where nobody fixed what should happen"
                assert verdict.value is not None or (verdict.weight, verdict.cause, verdict.pays) == (0, None, None)
                assert not verdict.value or (verdict.paid and verdict.payment is None)
                continue
            assert (verdict.value is None) == (verdict.cause is not None) == (verdict.paid is None)
            assert verdict.payment is None or (0 < verdict.payment < 1 and verdict.paid is True)
            assert len(verdict.soft) in (0, len(verdict.depends_on))
    if score.lower is not None:
        assert score.upper is not None
        assert 0 <= score.lower <= score.upper <= 1
        if score.reward is not None:
            assert score.lower - TOLERANCE <= score.reward <= score.upper + TOLERANCE
    if task is not None and score.reward is not None and all(verdict.value is not None for verdict in score.verdicts):
        assert score.reward == pytest.approx(score.lower) == pytest.approx(score.upper)
    assert Score.from_json(score.to_json()) == replace(score)


@given(checklists(), parts, states, tasks, st.data())
def test_breaking_the_judge_never_pays(
    checklist: Checklist, talk: list[list[Any]], answers: list[int], task: Task | None, data: st.DataObject
) -> None:
    """An item's honest no against a NULL that the policy causes: the lower bound is never above."""
    place = data.draw(st.integers(0, len(answers) - 1))
    honest, hidden = [*answers], [*answers]
    honest[place], hidden[place] = 1, 2
    if any(item.when_question is not None and item.otherwise == "paid" for item in checklist):
        return  # there a no says that the item does not apply, and is paid
    _, failed = scored(checklist, talk, honest, task)
    _, null = scored(checklist, talk, hidden, task)
    if failed.lower is not None and null.lower is not None:
        assert null.lower <= failed.lower + TOLERANCE
