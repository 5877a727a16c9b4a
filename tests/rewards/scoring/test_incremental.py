"""A scorer that follows a trace as it grows: the scores are those of the whole trace, and little is done again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.run import RunFailure, Status
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.rewards.scoring.test_data_checks import ends_decided, lasting, runs
from tests.rewards.scoring.test_scorer_properties import checklists
from tests.rewards.talk import call, say, trace_of_runs, turn


def grown(whole: Trace) -> Iterator[Trace]:
    """The trace after each of its runs, each made of the one before when that was scored."""
    one = Trace(id=whole.id, runs=())
    for run in whole.runs:
        one = one.with_run(run)
        yield one


def plain(score: Score) -> dict[str, Any]:
    return {**score.to_json(), "usage": None}


statuses: st.SearchStrategy[Status] = st.sampled_from(["ok", "ok", "error", "cancelled", "interrupted"])


@given(
    runs,
    checklists()
    | st.builds(
        lambda *checks: Checklist(
            *(
                Item(f"{turn}{number}", check=check, turn=turn)
                for number, check in enumerate(checks)
                for turn in ("each", "trace")
            )
        ),
        lasting,
        ends_decided,
    ),
    st.data(),
)
def test_scores_are_those_of_the_whole_trace(parts: list[list[Any]], checklist: Checklist, data: st.DataObject) -> None:
    whole = trace_of_runs(parts)
    made = [
        replace(run, status=data.draw(statuses), attributes=data.draw(st.sampled_from([{}, {"cm2.cut": "steps"}])))
        for run in whole.runs
    ]
    whole = Trace(id="t", runs=tuple(made))
    follows = ChecklistScorer(checklist, incremental=True)
    for seen, one in enumerate(grown(whole), 1):
        anew = ChecklistScorer(checklist).score_sync(Trace(id="t", runs=whole.runs[:seen]))
        assert plain(follows.score_sync(one)) == plain(anew)


def talk(turns: int) -> Trace:
    return trace_of_runs(
        [[turn(f"Question {n}", call("look", f"A-{n}", n=n), say(f"Answer {n}"))] for n in range(turns)]
    )


def test_a_turn_that_is_over_is_not_checked_again_and_its_score_is_the_same_object() -> None:
    asked: list[int | None] = []

    def looks(view: View) -> bool:
        asked.append(view.turn)
        return view.called("look")

    scorer = ChecklistScorer(
        Checklist(Item("looks", check=looks), Item("replied", check={"replied": True})), incremental=True
    )
    before: Sequence[Any] = ()
    for one in grown(talk(5)):
        score = scorer.score_sync(one)
        assert all(old is new for old, new in zip(before, score.turns, strict=False))
        before = score.turns
    assert asked == [0, 1, 2, 3, 4]


def test_a_scorer_that_does_not_follow_asks_everything_anew() -> None:
    asked: list[int | None] = []

    def looks(view: View) -> bool:
        asked.append(view.turn)
        return view.called("look")

    scorer = ChecklistScorer(Checklist(Item("looks", check=looks)))
    for one in grown(talk(3)):
        scorer.score_sync(one)
    assert asked == [0, 0, 1, 0, 1, 2]


class Judging:
    """A judge that notes the turns it was asked about, and fails on some."""

    def __init__(self, *failing: int) -> None:
        self.asked: list[int | None] = []
        self.failing = list(failing)

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> list[Verdict]:
        self.asked.append(turn)
        if turn in self.failing:
            self.failing.remove(turn)
            raise TimeoutError("no answer")
        return [Verdict(item=item.id, value=True, weight=0) for item in items]


def test_the_judge_is_asked_about_new_turns_and_again_where_it_failed() -> None:
    judge = Judging(1)
    scorer = ChecklistScorer(Checklist(Item("kind", "Is it kind?")), judge=judge, incremental=True)
    scores = [asyncio.run(scorer(one)) for one in grown(talk(4))]
    assert judge.asked == [0, 1, 1, 2, 3]
    assert [score.reward for score in scores] == [1.0, None, 1.0, 1.0]
    scorer.judge = other = Judging()
    asyncio.run(scorer(talk(2)))
    assert other.asked == [0, 1]


def test_a_turn_that_goes_on_in_a_later_run_is_checked_again() -> None:
    whole = trace_of_runs([[turn("Hello", call("look"))], [say("Here you are")], [turn("Thanks", say("Bye"))]])
    scorer = ChecklistScorer(Checklist(Item("replied", check={"replied": True})), incremental=True)
    assert [scorer.score_sync(one).reward for one in grown(whole)] == [0.0, 1.0, 1.0]


# -- turns that ended in an exception

CRASH = Checklist(
    Item("clean", check={"no_tool_error": True}),
    Item("silent", check={"reply_matches": "sorry"}, kind="avoid"),
    Item("looked", check={"called": "look"}),
    name="crash",
)


def crashed(*parts: list[Any], kind: str = "RuntimeError") -> Trace:
    """A dialogue whose first run ended in an exception."""
    one = trace_of_runs([list(parts[:1]), *([part] for part in parts[1:])])
    first = replace(one.runs[0], status="error", failure=RunFailure(kind=kind, message="db down"))
    return Trace(id="t", runs=(first, *one.runs[1:]))


@pytest.mark.parametrize("last", [call("look"), [*call("look"), *say("It is shipped.")]], ids=["broken off", "replied"])
def test_a_turn_that_ended_in_an_exception_is_never_clean(last: list[Any]) -> None:
    one = crashed(turn("Where is it?", last), turn("Hello?", say("Hello.")))
    first, second = ChecklistScorer(CRASH).score_sync(one).turns
    assert [(v.value, v.reason) for v in first.verdicts] == [(False, "failure"), (False, "failure"), (True, None)]
    assert [v.value for v in second.verdicts] == [True, True, False]
    alone = ChecklistScorer(CRASH).score_sync(Trace(id="t", runs=one.runs[:1]))
    assert (alone.reward, alone.null_reason) == (None, "failure: RuntimeError")


def test_an_exception_before_any_answer_fails_no_turn() -> None:
    """The user's message joins the next one, and the turn before it ended well."""
    asks = (turn("Where is it?", call("look"), say("Here.")), turn("And now?"), turn("Well?", say("Gone.")))
    whole = trace_of_runs([[one] for one in asks])
    broken = replace(whole.runs[1], status="error", failure=RunFailure(kind="ModelError", message="down"))
    score = ChecklistScorer(CRASH).score_sync(Trace(id="t", runs=(whole.runs[0], broken, whole.runs[2])))
    assert [[v.value for v in one.verdicts] for one in score.turns] == [[True, True, True], [True, True, False]]


def test_a_turn_that_was_taken_up_again_did_not_end_in_its_exception() -> None:
    whole = trace_of_runs([[turn("Where is it?", call("look"))], [say("Here.")]])
    broken = replace(whole.runs[0], status="error", failure=RunFailure(kind="ModelError", message="down"))
    score = ChecklistScorer(CRASH).score_sync(Trace(id="t", runs=(broken, whole.runs[1])))
    assert [v.value for v in score.verdicts] == [True, True, True]
