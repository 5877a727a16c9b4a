"""Items that do not always apply: by the task's own messages, by what happened, and in dialogues without a task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent import NOT_APPLICABLE
from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.not_applicable import NotApplicable
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.task import Task, check_trainable
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.rewards.scoring.test_incremental import grown, plain
from tests.rewards.talk import call, say, trace, trace_of_runs, turn

LOOKS = Item("looks_up", check={"called": "get_order"}, when={"user_matches": "(?i)order"})
TELLS = Item("tells", check={"reply_matches": "2026"}, depends_on=["looks_up"], weight=2)
POLITE = Item("polite", check={"reply_matches": "please"})


def found(score: Score) -> list[tuple[int | None, str, float, bool | None, str | None]]:
    return [
        (one.turn, verdict.item, round(verdict.weight, 9), verdict.value, verdict.reason)
        for one in score.turns
        for verdict in one.verdicts
    ]


def by_id(score: Score, item: str) -> Verdict:
    return next(verdict for verdict in score.verdicts if verdict.item == item)


# -- by the task's own messages


def test_an_item_that_does_not_apply_is_no_part_of_its_turn() -> None:
    task = Task(id="t", turns=("Where is my order?", "Thanks!"))
    score = ChecklistScorer(Checklist(LOOKS, TELLS, POLITE)).score_sync(
        trace(
            turn("Where is my order?", call("get_order"), say("2026")), turn("Thanks!", say("It comes 2026, please"))
        ),
        task,
    )
    assert found(score) == [
        (0, "looks_up", 0.25, True, None),
        (0, "tells", 0.5, True, None),
        (0, "polite", 0.25, False, None),
        (1, "tells", 0.666666667, True, None),
        (1, "polite", 0.333333333, True, None),
    ]
    assert score.reward == score.lower == score.upper == pytest.approx((0.75 + 1) / 2)
    assert by_id(score, "tells").depends_on == (0,)
    assert score.turns[1].verdicts[0].depends_on == (), "what is not there is waited for by none"


def test_a_turn_without_items_leaves_the_sum() -> None:
    only = Checklist(
        LOOKS, Item("rest", any_of=["looks_up"], weight=3), Item("aside", check={"replied": True}, weight=0)
    )
    task = Task(id="t", turns=("My order?", "Thanks!"))
    score = ChecklistScorer(only).score_sync(trace(turn("My order?", call("get_order"), say("Yes"))), task)
    assert (score.length, score.reward) == (1, 1.0), "what is left weighs nothing, so the turn does not count"


def test_the_closing_block_applies_by_any_message_and_a_turn_by_its_own() -> None:
    block = Item("closing", check={"called": "get_order"}, turn="trace", when={"user_matches": "order"})
    second = Item("second", check={"replied": True}, turn=1, when={"user_matches": "order"})
    task = Task(id="t", turns=("An order", "Thanks"))
    score = ChecklistScorer(Checklist(block, second)).score_sync(trace(turn("An order", call("get_order"))), task)
    assert [one.turn for one in score.turns] == [None]


EXOGENOUS = Checklist(
    LOOKS, TELLS, POLITE, Item("sorry", check={"replied": True}, turn="trace", when={"user_matches": "late"})
)
TASK = Task(id="t", turns=("Where is my order?", "It is late!", "Thanks"))
steps = st.sampled_from([call("get_order"), say("order late 2026 please"), say("Hm")])
dialogues = st.lists(st.lists(steps, min_size=1, max_size=3), min_size=1, max_size=4)


@given(
    dialogues,
    st.booleans(),
    st.sampled_from([{}, {"cm2.gate.turn": 0}, {"cm2.cut": "steps"}]),
    st.booleans(),
    st.sampled_from([list, canonical_json]),
)
def test_what_applies_does_not_depend_on_the_dialogue(
    parts: list[list[Any]], same: bool, ended: dict[str, Any], at_hand: bool, as_json: Any
) -> None:
    """The task alone says it, be it at hand or recorded in the trace: the turns, their items and weights are alike."""
    messages = [*TASK.turns, "My order, late"] if same else ["order", "late", "order late", "order"]
    recorded = {"cm2.task.id": "t", "cm2.task.turns": 3, "cm2.task.messages": as_json(TASK.turns)}
    made = trace(*(turn(text, *own) for text, own in zip(messages, parts, strict=False)))
    run = replace(made.runs[0], attributes={**ended, **({} if at_hand else recorded)})
    score = ChecklistScorer(EXOGENOUS).score_sync(Trace(id="t", runs=(run,)), TASK if at_hand else None)
    assert [(one[0], one[1], one[2]) for one in found(score)] == [
        (0, "looks_up", 0.25),
        (0, "tells", 0.5),
        (0, "polite", 0.25),
        (1, "tells", 0.666666667),
        (1, "polite", 0.333333333),
        (2, "tells", 0.666666667),
        (2, "polite", 0.333333333),
        (None, "sorry", 1.0),
    ]


@pytest.mark.parametrize(
    "recorded", [None, "no JSON", '{"a": 1}', '["Where is my order?"]', '["Where is my order?", "It is late!", 3]']
)
def test_a_trace_that_does_not_say_what_its_task_was_loses_nothing_by_it(recorded: str | None) -> None:
    """Its own messages might be anything: the item stays, and is unpaid where it does not apply."""
    attributes: dict[str, Any] = {"cm2_task_id": "t", "cm2_task_turns": 3}
    if recorded is not None:
        attributes["cm2_task_messages"] = recorded
    made = trace(
        turn("Where is my order?", call("get_order"), say("2026")), turn("It is late!", say("Hm")), **attributes
    )
    score = ChecklistScorer(Checklist(LOOKS)).score_sync(made)
    assert [(one[0], one[2], one[3], one[4]) for one in found(score)] == [
        (0, 1.0, True, None),
        (1, 1.0, False, "not applicable"),
        (2, 1.0, False, "unreached"),
    ]
    assert score.reward == score.lower == pytest.approx(1 / 3)


def test_a_simulated_user_decides_nothing_before_the_rollout() -> None:
    persona = Task(id="t", persona="Ada")
    block = Item("closing", check={"called": "get_order"}, turn="trace", when={"user_matches": "order"})
    aside = Item("replies", check={"replied": True}, turn="trace")
    score = ChecklistScorer(Checklist(block, aside)).score_sync(trace(turn("Hello", say("Hello"))), persona)
    assert found(score) == [(None, "closing", 0.5, False, "not applicable"), (None, "replies", 0.5, True, None)]
    assert score.reward == score.lower == 0.5


def test_a_task_whose_turns_hold_nothing_that_applies_is_refused() -> None:
    check_trainable(Checklist(LOOKS), Task(id="t", turns=("My order",)))
    with pytest.raises(ChecklistError, match=r"no item in the 1 turns of task 't'.*looks_up apply to other messages"):
        check_trainable(Checklist(LOOKS), Task(id="t", turns=("Hello",)))
    block = Item("late", check={"replied": True}, turn="trace", when={"user_matches": "late"})
    with pytest.raises(ChecklistError, match="no item in the 1 turns"):
        check_trainable(Checklist(block), Task(id="t", turns=("Hello",)))


# -- by what happened


def eligible(view: View) -> bool:
    return "eligible" in view.results("get_order")


def ineligible(view: View) -> bool:
    return "ineligible" in view.results("get_order")


CANCELS = Item("cancels", check={"called": "cancel"}, when=eligible, weight=0)
REFUSES = Item("refuses", check={"reply_matches": "cannot"}, when=ineligible, weight=0)
RIGHT = Item("right", any_of=["cancels", "refuses"], weight=3)
REFUND = Checklist(CANCELS, REFUSES, RIGHT, Item("looks_up", check={"called": "get_order"}))
ORDER = Task(id="t", turns=("Cancel my order.",))


@pytest.mark.parametrize(
    ("steps", "reward", "reasons"),
    [
        ([call("get_order", "eligible"), call("cancel"), say("Done.")], 1.0, [None, "not applicable"]),
        ([call("get_order", "ineligible"), say("I cannot.")], 1.0, ["not applicable", None]),
        ([call("get_order", "eligible"), say("I cannot.")], 0.25, [None, "not applicable"]),
        ([call("get_order", "ineligible"), call("cancel"), say("Done.")], 0.25, ["not applicable", None]),
        ([say("I cannot.")], 0.0, ["not applicable", "not applicable"]),
        ([call("cancel")], 0.0, ["not applicable", "not applicable"]),
    ],
)
def test_the_other_right_way_is_paid(steps: list[Any], reward: float, reasons: list[str | None]) -> None:
    score = ChecklistScorer(REFUND).score_sync(trace(turn("Cancel my order.", *steps)), ORDER)
    assert score.reward == score.lower == score.upper == reward
    assert [verdict.reason for verdict in score.verdicts[:2]] == reasons
    assert [verdict.weight for verdict in score.verdicts] == [0, 0, 0.75, 0.25], "nothing is renormalised"


@pytest.mark.parametrize(("answer", "reason"), [(None, "any_of"), (False, None), (True, None)])
async def test_what_is_any_of_several_says_where_a_null_may_have_satisfied_it_earlier(
    answer: bool | None, reason: str | None
) -> None:
    """Training takes the least that the NULL allows, so it has to know of it."""

    async def judge(trace: Trace, turn: int | None, items: Any) -> list[Verdict]:
        cause: Any = "content" if answer is None else None
        step = 1 if answer else None
        return [Verdict(item=item.id, value=answer, weight=0, step=step, paid=answer, cause=cause) for item in items]

    either = Item("either", any_of=["asks", "says"])
    both = Checklist(Item("asks", "Does it ask?", weight=0), Item("says", check={"reply_matches": "There"}), either)
    score = await ChecklistScorer(both, judge=judge)(trace(turn("Where?", call("look"), say("There."))))
    one = by_id(score, "either")
    assert (one.value, one.step, one.reason) == (True, 1 if answer else 2, reason)


def test_otherwise_paid_is_paid_at_the_last_step_and_holds_nobody_up() -> None:
    confirms = Item("confirms", check={"called": "ask"}, when={"called": "cancel"}, otherwise="paid")
    greets = Item("greets", check={"replied": True}, depends_on=["confirms"])
    after = Item("after", check={"reply_matches": "zzz"}, when={"called": "zzz"}, otherwise="paid", depends_on=["no"])
    never = Item("no", check={"called": "nothing"})
    scorer = ChecklistScorer(Checklist(confirms, greets, never, after))
    score = scorer.score_sync(trace(turn("Hello", call("look"), say("Hello"))), Task(id="t", turns=("Hello",)))
    assert [(one.value, one.paid, one.step, one.reason) for one in score.verdicts] == [
        (True, True, 2, "not applicable"),
        (True, True, 2, None),
        (False, False, None, None),
        (True, True, 2, "not applicable"),
    ]
    assert score.reward == 0.75
    asked = scorer.score_sync(trace(turn("Hello", call("cancel"), say("Hello"))), Task(id="t", turns=("Hello",)))
    assert by_id(asked, "confirms").value is False
    assert by_id(asked, "greets").reason == "dependency"


def test_what_was_cut_short_is_not_paid_for_what_it_did_not_come_to() -> None:
    item = Item("confirms", check={"reply_matches": "sure"}, when={"called": "cancel"}, otherwise="paid")
    cut = trace(turn("Hello", call("look")), cm2_cut="steps", cm2_task_turns=1)
    score = ChecklistScorer(Checklist(item)).score_sync(cut)
    assert found(score) == [(0, "confirms", 1.0, False, "limit")]


def test_what_hangs_on_an_item_that_does_not_apply_is_unpaid() -> None:
    tells = Item("tells", check={"replied": True}, depends_on=["looks_up"])
    softly = Item("softly", check={"replied": True}, depends_on=[{"item": "looks_up", "soft": 0.5}])
    looks = Item("looks_up", check={"called": "get_order"}, when=eligible)
    score = ChecklistScorer(Checklist(looks, tells, softly)).score_sync(trace(turn("Hello", say("Hi"))), ORDER)
    assert [(one.value, one.payment, one.reason) for one in score.verdicts] == [
        (False, None, "not applicable"),
        (False, None, "dependency"),
        (True, 0.5, None),
    ]


def refuses_shipped(view: View) -> bool | NotApplicable:
    if not view.results("get_order"):
        return NOT_APPLICABLE
    return "shipped" in view.reply


@pytest.mark.parametrize("kind", ["reach", "hold", "avoid"])
@pytest.mark.parametrize("otherwise", ["unpaid", "paid"])
def test_a_check_may_answer_that_its_item_does_not_apply(kind: Any, otherwise: Any) -> None:
    scorer = ChecklistScorer(Checklist(Item("a", check=refuses_shipped, kind=kind, otherwise=otherwise)))
    silent = by_id(scorer.score_sync(trace(turn("Hello", say("shipped"))), ORDER), "a")
    assert (silent.value, silent.reason) == (otherwise == "paid", "not applicable")
    applies = by_id(scorer.score_sync(trace(turn("Hello", call("get_order"), say("It is shipped"))), ORDER), "a")
    assert (applies.value, applies.reason) == (kind != "avoid", None)


def test_a_when_that_cannot_tell_leaves_the_item_without_a_verdict() -> None:
    def fails(view: View) -> bool:
        raise LookupError("the index is away")

    item = Item("a", check={"replied": True}, when=fails, otherwise="paid")
    score = ChecklistScorer(Checklist(item, POLITE)).score_sync(trace(turn("Hello", say("Hi"))), ORDER)
    verdict = by_id(score, "a")
    assert (verdict.value, verdict.cause, verdict.reason) == (None, "infrastructure", "check failed")
    assert verdict.explanation is not None
    assert "whether item a applies: the check raised LookupError" in verdict.explanation
    assert score.pending

    def never(view: View) -> NotApplicable:
        return NOT_APPLICABLE

    inner = Item("a", check={"replied": True}, when=never)
    assert by_id(ChecklistScorer(Checklist(inner)).score_sync(trace(turn("Hi", say("Hi"))), ORDER), "a").value is False


# -- without a task


def test_thanks_fails_no_live_checklist() -> None:
    live = Checklist(LOOKS, Item("tells", check={"reply_matches": "2026"}, depends_on=["looks_up"]), POLITE)
    both = trace(
        turn("My order?", call("get_order"), say("2026, please")), turn("Thanks!", say("Anything else, please"))
    )
    score = ChecklistScorer(live).score_sync(both)
    assert found(score)[3:] == [
        (1, "looks_up", 0.0, None, "not applicable"),
        (1, "tells", 0.0, None, "not applicable"),
        (1, "polite", 1.0, True, None),
    ]
    assert (score.reward, score.pending, score.null_reason) == (1.0, False, None)
    assert by_id(score, "looks_up").cause is None
    assert score.lower == pytest.approx((1 + 1 / 3) / 2), "a policy gains nothing by what it did not come to"
    assert score.upper == 1.0
    assert Score.from_json(score.to_json()) == score


def test_a_live_turn_in_which_nothing_applies_leaves_the_sum() -> None:
    scorer = ChecklistScorer(Checklist(LOOKS))
    score = scorer.score_sync(trace(turn("My order?", say("Hm")), turn("Thanks!", say("Bye"))))
    assert (score.reward, score.turns[1].reward, score.lower, score.upper) == (0.0, None, 0.0, 0.5)
    thanks = scorer.score_sync(trace(turn("Thanks!", say("Bye"))))
    assert (thanks.reward, thanks.null_reason, thanks.lower, thanks.upper) == (None, "no turn", None, None)
    assert not thanks.pending


def test_a_live_item_without_a_verdict_is_still_one() -> None:
    score = ChecklistScorer(Checklist(LOOKS, Item("kind", "Is it kind?"))).score_sync(trace(turn("Hi", say("Hi"))))
    assert [verdict.reason for verdict in score.verdicts] == ["not applicable", "no judge"]
    assert (score.reward, score.null_reason, score.pending) == (None, "verdicts", True)


live_steps = st.sampled_from([call("get_order", "eligible"), call("cancel"), say("2026")])
parts_of_runs = st.lists(
    st.lists(
        st.builds(
            lambda text, own: turn(text, *own),
            st.sampled_from(["order", "thanks"]),
            st.lists(
                st.sampled_from([call("get_order", "eligible"), call("cancel"), say("2026")]), min_size=1, max_size=3
            ),
        ),
        min_size=1,
        max_size=2,
    ),
    min_size=1,
    max_size=4,
)


@given(parts_of_runs)
def test_a_growing_trace_is_scored_as_the_whole(parts: list[list[Any]]) -> None:
    whole = trace_of_runs(parts)
    checklist = Checklist(LOOKS, TELLS, POLITE, CANCELS, REFUSES, RIGHT)
    follows = ChecklistScorer(checklist, incremental=True)
    for seen, one in enumerate(grown(whole), 1):
        anew = ChecklistScorer(checklist).score_sync(Trace(id="t", runs=whole.runs[:seen]))
        assert plain(follows.score_sync(one)) == plain(anew)
        assert anew.lower is None or anew.reward is None or anew.lower <= anew.reward + 1e-12


def test_a_live_turn_in_which_items_do_not_apply_is_not_checked_again() -> None:
    asked: list[int | None] = []

    def shipped(view: View) -> bool:
        asked.append(view.turn)
        return False

    scorer = ChecklistScorer(Checklist(Item("a", check={"replied": True}, when=shipped), POLITE), incremental=True)
    for one in grown(trace_of_runs([[turn(f"Hello {n}", say("please"))] for n in range(4)])):
        scorer.score_sync(one)
    assert asked == [0, 1, 2, 3]
