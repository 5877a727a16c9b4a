"""A judge that says whether an item applies, and a gate that asks nothing of one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.rewards.scoring.test_applicability import CANCELS, REFUSES, by_id, eligible, refuses_shipped
from tests.rewards.talk import call, say, trace, turn

# -- by a judge's answer


class Asked:
    """A judge that answers from a table, and notes what it is asked. An exception is raised."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.calls = answers, list[list[str]]()

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> list[Verdict]:
        self.calls.append([item.id for item in items])
        for item in items:
            if isinstance(self.answers[item.id], Exception):
                raise self.answers[item.id]
        quote = {"quote": "as it stands there"}
        return [
            Verdict(
                item=item.id,
                value=self.answers[item.id],
                weight=0,
                cause=None if self.answers[item.id] is not None else "content",
                reason=None if self.answers[item.id] is not None else "judge failed",
                evidence=(quote,),
            )
            for item in items
        ]


SORRY = Item("sorry", "Does the agent say that it is sorry?", when="Is the parcel late?")
KIND = Item("kind", "Is it kind?")
LATE = Task(id="t", turns=("Where is it?",))


def judged(answers: dict[str, Any], *items: Item, task: Task | None = LATE) -> tuple[Asked, Score]:
    judge = Asked(answers)
    score = asyncio.run(ChecklistScorer(Checklist(*items), judge=judge)(trace(turn("Where is it?", say("Late"))), task))
    return judge, score


def test_a_judge_is_asked_first_whether_an_item_applies() -> None:
    judge, score = judged({"sorry:when": True, "kind": True, "sorry": False}, SORRY, KIND)
    assert judge.calls == [["kind", "sorry:when"], ["sorry"]]
    assert [(one.item, one.value, one.weight) for one in score.verdicts] == [
        ("sorry", False, 0.5),
        ("kind", True, 0.5),
        ("sorry:when", True, 0.0),
    ]
    assert (score.reward, by_id(score, "sorry:when").evidence) == (0.5, ({"quote": "as it stands there"},))


@pytest.mark.parametrize(("task", "reward", "lower"), [(LATE, 0.5, 0.5), (None, 1.0, 0.5)])
def test_an_item_that_does_not_apply_is_not_asked(task: Task | None, reward: float, lower: float) -> None:
    judge, score = judged({"sorry:when": False, "kind": True}, SORRY, KIND, task=task)
    assert judge.calls == [["kind", "sorry:when"]]
    assert by_id(score, "sorry").reason == "not applicable"
    assert (score.reward, score.lower) == (reward, lower)


def test_a_judge_that_cannot_tell_whether_an_item_applies() -> None:
    _, score = judged({"sorry:when": None, "kind": True}, SORRY, KIND)
    assert (by_id(score, "sorry").value, by_id(score, "sorry").cause) == (None, "content")
    assert by_id(score, "sorry").evidence == ({"quote": "as it stands there"},)
    assert (score.lower, score.upper, score.null_reason) == (0.5, 1.0, "verdicts")
    _, failed = judged({"sorry:when": TimeoutError("away"), "kind": True}, SORRY, KIND)
    assert failed.pending
    unjudged = ChecklistScorer(Checklist(SORRY)).score_sync(trace(turn("Where is it?", say("Late"))), LATE)
    assert [verdict.reason for verdict in unjudged.verdicts] == ["no judge", "no judge"]


def test_a_check_with_a_question_as_its_when_needs_the_judge() -> None:
    item = Item("refunds", check={"called": "refund"}, when="Is the parcel late?", otherwise="paid")
    judge, score = judged({"refunds:when": False}, item)
    assert (judge.calls, score.reward) == ([["refunds:when"]], 1.0)
    with pytest.raises(ChecklistError, match="the items refunds need the judge"):
        ChecklistScorer(Checklist(item), judge=Asked({})).score_sync(trace(turn("Where is it?", say("Late"))), LATE)


# -- the gate


@pytest.mark.parametrize(
    ("item", "passed"),
    [
        (Item("a", check={"called": "x"}, required_for_next_turn=True), False),
        (Item("a", check={"called": "x"}, when={"user_matches": "x"}, required_for_next_turn=True), True),
        (Item("a", check={"called": "x"}, when={"user_matches": "Hello"}, required_for_next_turn=True), False),
        (Item("a", check={"called": "x"}, when=eligible, required_for_next_turn=True), True),
        (Item("a", check=refuses_shipped, required_for_next_turn=True), True),
        (Item("a", "Is it so?", when="Is it?", required_for_next_turn=True), None),
    ],
)
def test_a_gate_asks_nothing_of_an_item_that_does_not_apply(item: Item, passed: bool | None) -> None:
    scorer = ChecklistScorer(Checklist(item, Item("replies", check={"replied": True})))
    task = Task(id="t", turns=("Hello", "x"))
    one = trace(turn("Hello", say("Hi")))
    assert asyncio.run(scorer.gate(one, 0, task)) is passed
    went_on = trace(turn("Hello", say("Hi")), turn("x", say("x")))
    assert (scorer.score_sync(went_on, task).null_reason in (None, "verdicts")) is True


def test_a_strict_item_may_rest_on_others() -> None:
    strict = Item("right", any_of=["cancels", "refuses"], required_for_next_turn=True)
    scorer = ChecklistScorer(Checklist(CANCELS, REFUSES, strict))
    task = Task(id="t", turns=("Cancel.", "Thanks"))
    refused = trace(turn("Cancel.", call("get_order", "ineligible"), say("I cannot.")))
    assert asyncio.run(scorer.gate(refused, 0, task)) is True
    assert asyncio.run(scorer.gate(trace(turn("Cancel.", say("I cannot."))), 0, task)) is False
