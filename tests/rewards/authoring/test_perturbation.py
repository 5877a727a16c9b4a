"""Corrupted references: each fails the item that names what was made wrong, and nothing else of the dialogue
changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.authoring.perturbation import corruptions, edited
from cm2_agent.rewards.judges.transcript import part_texts
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn

GOOD = trace(
    turn(
        "Where is order 7?",
        call("get_order", {"arrives": "2026-05-20"}, order_id=7),
        say("Order 7 arrives on 2026-05-20."),
    ),
    turn(
        "Cancel it.",
        call("get_order", {"arrives": "2026-05-20"}, order_id=7),
        call("cancel", {"ok": True}, order_id=7),
        say("Done."),
    ),
)


def value(item: Item, dialogue: Trace) -> bool | None:
    (verdict,) = ChecklistScorer(Checklist(item, name="c")).score_sync(dialogue).verdicts
    return verdict.value


CHECKS: list[tuple[dict[str, Any], str, int]] = [
    ({"called": "get_order"}, "reach", 2),
    ({"called": "get_order", "failed": "allowed"}, "reach", 1),
    ({"called": "get_order", "with": {"order_id": 7}}, "reach", 3),
    ({"called": "get_order", "with": {"order_id": {"from": "user"}}, "before": "reply"}, "reach", 3),
    ({"called": "get_order", "with": {"order_id": 7}, "succeeded": True}, "reach", 3),
    ({"replied": True}, "reach", 1),
    ({"reply_matches": "2026-05-20"}, "reach", 1),
    ({"never_called": ["refund", "cancel"]}, "", 1),
    ({"called": "refund"}, "avoid", 1),
    ({"at_most": {"get_order": 1}}, "", 1),
    ({"at_most": 3}, "", 1),
    ({"only_called": [{"called": "get_order", "with": {"order_id": 7}}], "among": ["get_order", "cancel"]}, "", 1),
    ({"no_tool_error": True}, "", 1),
    ({"no_tool_error": "get_order"}, "", 1),
]


@pytest.mark.parametrize(("check", "kind", "count"), CHECKS)
def test_a_check_holds_on_the_reference_and_fails_on_every_corruption(
    check: dict[str, Any], kind: str, count: int
) -> None:
    item = Item("x", check=check, turn=0, kind=kind or None)  # type: ignore[arg-type]
    assert value(item, GOOD) is True
    made = corruptions(item, GOOD)
    assert len(made) == count
    for one in made:
        assert value(item, one.trace) is False, one.what
        assert [len(turn.steps) for turn in one.trace.turns] == [2, 3], "turns and steps keep their numbers"
        assert one.trace.turns[1].steps == GOOD.turns[1].steps, "another turn is left alone"


def test_what_a_vacuous_check_asks_is_still_there() -> None:
    """The pattern matches silence and anything else: no corruption fails it, which is how the writer finds out."""
    item = Item("x", check={"reply_matches": "(?i)order|2026|done|.*"}, turn=0, kind="avoid")
    assert corruptions(item, GOOD) == []
    loose = Item("x", check={"called": "get_order", "with": {"order_id": {"from": "tool"}}}, turn=1)
    assert value(loose, GOOD) is False, "the reference does not satisfy it either"


def test_an_equal_call_later_in_the_turn_is_dropped_too() -> None:
    twice = trace(turn("Order 7?", call("get_order", order_id=7), call("get_order", order_id=7), say("Here.")))
    item = Item("x", check={"called": "get_order", "with": {"order_id": 7}}, turn=0)
    assert [value(item, one.trace) for one in corruptions(item, twice)] == [False] * 3


def question(focus: str, snippet: str, **more: Any) -> Item:
    pointer = {"turn": more.get("turn", 0), "step": more.pop("step", 0), "from": focus, "snippet": snippet}
    return Item("x", "Is it so?", focus_on=focus, evidence=[pointer], **{"turn": 0, **more})  # type: ignore[arg-type]


def test_questions_are_corrupted_where_their_evidence_points() -> None:
    (dropped,) = corruptions(question("assistant.tool_calls", "get_order"), GOOD)
    assert part_texts(dropped.trace.steps[0], "assistant.tool_calls") == ()
    assert dropped.trace.steps[0].responses == ()
    (changed,) = corruptions(question("assistant.tool_calls", '"order_id":7', level="parameter"), GOOD)
    assert part_texts(changed.trace.steps[0], "assistant.tool_calls") == ('get_order {"order_id":8}',)
    (swapped,) = corruptions(question("tool.content", "2026-05-20"), GOOD)
    assert part_texts(swapped.trace.steps[0], "tool.content") == ('{"ok":true}',)
    (silent,) = corruptions(question("assistant.reply", "arrives", step=1), GOOD)
    assert part_texts(silent.trace.steps[1], "assistant.reply") == ()
    claim = "I have refunded you 100 USD."
    (claimed,) = corruptions(
        Item("x", "Is a refund claimed?", kind="avoid", focus_on="assistant.reply", failure_examples=[claim]), GOOD
    )
    assert claimed.trace.turns[1].steps[-1].message.text.endswith(claim)


def test_a_lone_result_is_swapped_for_nothing_found() -> None:
    alone = trace(
        turn("Order 7?", call("get_order", {"arrives": "2026-05-20"}, order_id=7), say("It arrives on 2026-05-20."))
    )
    (swapped,) = corruptions(question("tool.content", "2026-05-20"), alone)
    assert "nothing was found" in part_texts(swapped.trace.steps[0], "tool.content")[0]


def test_without_pointers_or_with_a_function_nothing_is_made_wrong() -> None:
    assert corruptions(Item("x", "Is it so?", focus_on="assistant.reply"), GOOD) == []
    assert corruptions(Item("x", check=lambda view: True), GOOD) == []


def test_an_edit_that_changes_nothing_gives_the_reference_back() -> None:
    assert edited(GOOD, lambda step: step, GOOD.steps) is GOOD


VALUES = st.sampled_from([7, "7", 7.0, True, None, "", [1], {"a": 1}, "seven", "order 7"])


@given(VALUES, st.sampled_from([7, "seven", "order 7 and 8 and 9"]))
def test_a_changed_argument_is_another_value_that_nobody_said(given_value: Any, said: Any) -> None:
    dialogue = trace(turn(f"It is {said}", call("t", order=given_value), say("x")))
    item = Item("x", check={"called": "t", "with": {"order": given_value}}, turn=0)
    told = Item("x", check={"called": "t", "with": {"order": {"from": "user"}}}, turn=0)
    assert value(item, dialogue) is True
    for one in corruptions(item, dialogue):
        assert value(item, one.trace) is False
        assert value(told, one.trace) is False
