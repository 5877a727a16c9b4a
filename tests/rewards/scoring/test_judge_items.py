"""The judge's part: what it is asked, and that nothing it gets wrong becomes a number. The judges here are real plugs,
written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cm2_agent.errors import ChecklistError, JudgeError
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn

ONE = trace(turn("Where?", call("get_order", "May 3"), say("May 3")))


def verdict_on(item: str, value: bool | None = True, **keys: Any) -> Verdict:
    return Verdict(item=item, value=value, weight=0, **keys)


class Scripted:
    """A judge that gives the verdicts it was given, and remembers what it was asked."""

    version = "scripted:1"

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = verdicts
        self.asked: list[tuple[int | None, list[str]]] = []

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        self.asked.append((turn, [item.id for item in items]))
        return self.verdicts


async def score(judge: Any, *items: Item, one: Trace = ONE) -> Score:
    return await ChecklistScorer(Checklist(*items), judge=judge)(one)


async def test_one_call_a_turn_for_its_open_items_alone() -> None:
    items = [
        Item("looked", check={"called": "get_order"}),
        Item("never", check={"called": "bye"}),
        Item("open", "Is it right?", depends_on=["looked"]),
        Item("after_open", "And kind?", depends_on=["open"]),
        Item("closed", "Is it late?", depends_on=["never"]),
        Item("whole", "Is the dialogue fine?", turn="trace"),
    ]
    judge = Scripted(verdict_on("after_open", step=2), verdict_on("open", step=1), verdict_on("whole"))
    got = await score(judge, *items)
    assert judge.asked == [(0, ["open", "after_open"]), (None, ["whole"])]
    assert [verdict.reason for verdict in got.verdicts if verdict.item == "closed"] == ["dependency"]
    assert got.turns[1].reward is None, "the second reply spoke of items of another turn: none of it can be trusted"


async def test_verdicts_are_taken_by_id_whatever_their_order() -> None:
    items = [Item("a", "A?"), Item("b", "B?"), Item("c", "C?", weight=2)]
    verdicts = [verdict_on("a", True, step=1), verdict_on("b", False), verdict_on("c", True, step=2)]
    forwards, backwards = await score(Scripted(*verdicts), *items), await score(Scripted(*reversed(verdicts)), *items)
    assert forwards.turns == backwards.turns
    assert forwards.reward == 0.75


async def test_the_flip_that_the_judge_says_decides_payment() -> None:
    items = [Item("first", "A?", weight=0), Item("then", "B?", depends_on=["first"])]
    assert (await score(Scripted(verdict_on("first", step=1), verdict_on("then", step=2)), *items)).reward == 1.0
    assert (await score(Scripted(verdict_on("first", step=2), verdict_on("then", step=2)), *items)).reward == 0.0
    assert (await score(Scripted(verdict_on("first", step=1), verdict_on("then")), *items)).reward == 1.0, (
        "no step: from the last one on"
    )


@pytest.mark.parametrize("kind", ["hold", "avoid"])
async def test_hold_and_avoid_turn_true_in_the_last_row_whatever_the_judge_says(kind: Any) -> None:
    got = await score(Scripted(verdict_on("a", True, step=1)), Item("a", "A?", kind=kind))
    assert got.verdicts[0].step == 2


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        raise self.error


FAULTS: dict[str, Any] = {
    "JudgeError": Broken(JudgeError("malformed reply")),
    "time-out": Broken(TimeoutError("30 s")),
    "bug": Broken(AttributeError("x")),
    "nothing": Scripted(),
    "another item": Scripted(verdict_on("ghost"), verdict_on("a", step=1)),
    "twice": Scripted(verdict_on("a", True, step=1), verdict_on("a", False)),
    "no step of the turn": Scripted(verdict_on("a", True, step=9)),
    "step 0": Scripted(verdict_on("a", True, step=0)),
    "a number": Scripted(verdict_on("a", 1)),  # type: ignore[arg-type]
    "abstains": Scripted(verdict_on("a", None, cause="content", reason="refusal")),
    "no judge": None,
}


@pytest.mark.parametrize("judge", FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_is_null_with_its_cause_and_never_a_number(judge: Any) -> None:
    got = await score(judge, Item("a", "A?"))
    [verdict] = got.verdicts
    assert (verdict.value, verdict.paid, verdict.step, got.reward, got.null_reason) == (
        None,
        None,
        None,
        None,
        "verdicts",
    )
    assert verdict.cause == ("content" if verdict.reason == "refusal" else "infrastructure")


async def test_a_dependant_of_a_null_item_is_null_with_its_cause() -> None:
    looked = Item("b", check={"called": "get_order"}, depends_on=["a"])
    items = [Item("a", "A?"), looked, Item("c", check={"called": "bye"}, depends_on=["b"])]
    got = await score(Scripted(verdict_on("a", None, cause="content")), *items)
    assert [(verdict.value, verdict.cause) for verdict in got.verdicts] == [(None, "content")] * 3


async def test_a_false_prerequisite_beats_a_null_one() -> None:
    items = [
        Item("null", "A?"),
        Item("false", check={"called": "bye"}),
        Item("child", "B?", depends_on=["null", "false"]),
    ]
    got = await score(Scripted(verdict_on("null", None)), *items)
    assert (got.verdicts[2].value, got.verdicts[2].reason) == (False, "dependency")


async def test_a_cut_scope_does_not_ask_about_what_is_decided() -> None:
    judge = Scripted(verdict_on("r", step=1))
    cut = trace(turn("Where?", call("get_order", "May 3")), cm2_cut="steps")
    got = await score(judge, Item("r", "R?"), Item("h", "H?", kind="hold"), Item("n", "N?", kind="avoid"), one=cut)
    assert judge.asked == [(0, ["r"])]
    assert [(verdict.value, verdict.reason) for verdict in got.verdicts] == [
        (True, None),
        (False, "limit"),
        (False, "limit"),
    ]


async def test_the_gate_asks_the_judge_for_strict_items_alone() -> None:
    judge = Scripted(verdict_on("strict"))
    scorer = ChecklistScorer(
        Checklist(Item("strict", "S?", turn=0, required_for_next_turn=True), Item("other", "O?", turn=0)), judge=judge
    )
    assert await scorer.gate(ONE, 0) is True
    assert judge.asked == [(0, ["strict"])]
    assert await ChecklistScorer(scorer.checklist, judge=Scripted(verdict_on("strict", False))).gate(ONE, 0) is False
    assert await ChecklistScorer(scorer.checklist, judge=FAULTS["time-out"]).gate(ONE, 0) is None


async def test_unreached_turns_and_dead_dialogues_are_not_judged() -> None:
    judge = Scripted(verdict_on("a", step=1))
    cut = trace(turn("Where?", call("get_order", "May 3")), cm2_cut="steps", cm2_task_turns=3)
    got = await score(judge, Item("a", "A?"), one=cut)
    assert judge.asked == [(0, ["a"])]
    assert got.reward == pytest.approx(1 / 3)
    dead = Scripted()
    await score(dead, Item("a", "A?"), one=trace(turn("Where?", say("x")), failure="ToolError"))
    assert dead.asked == []


def test_the_judge_is_in_the_version_and_not_in_sync_scoring() -> None:
    judged = ChecklistScorer(Checklist(Item("a", "A?")), judge=Scripted())
    assert ";judge=scripted:1" in judged.version
    with pytest.raises(ChecklistError, match=r"the items a need the judge"):
        judged.score_sync(ONE)
