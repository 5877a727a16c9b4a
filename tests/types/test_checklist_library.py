"""The shipped item libraries: what each says of hand-made dialogues, good and bad, and that each can be included as its
header shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.checklist_library import shipped_libraries
from cm2_agent.types.checklist_yaml import read_checklist
from cm2_agent.types.score import Verdict
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn

FOLDER = Path(__file__).resolve().parents[2] / "cm2_agent" / "libraries"


def library(include: str) -> Checklist:
    return read_checklist(f"name: a\ninclude: [{include}]\nitems: []\n")


def headers() -> list[tuple[str, str]]:
    found = [
        (path.stem, line)
        for path in sorted(FOLDER.glob("*.yaml"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [
        (name, line.removeprefix("#   include:").strip()) for name, line in found if line.startswith("#   include:")
    ]


@pytest.mark.parametrize(("name", "include"), headers())
def test_the_header_shows_how_to_include_it(name: str, include: str) -> None:
    got = read_checklist(f"name: a\ninclude: {include}\nitems: []\n")
    assert got.items
    assert len({item.id.partition(".")[0] for item in got}) == 1, "one prefix a library, so that ids do not meet"


def test_every_library_is_documented_and_its_items_can_be_judged() -> None:
    assert {name for name, _ in headers()} == set(shipped_libraries())
    everything = library(
        "cm2:grounding, cm2:honest-claims, cm2:tool-hygiene, {cm2:error-recovery: {tool: x}}, "
        "{cm2:confirmation-before-write: {writes: [x]}}"
    )
    assert len(everything.items) == 14
    for item in everything:
        assert item.question
        assert item.facet
        assert item.level
        if item.check is None:
            assert item.focus_on, item.id
            assert item.pass_condition, item.id
            assert item.kind == "avoid", "a turn in which the matter does not come up must not cost anything"


class Finds:
    """A judge that finds the violations it was told of, and satisfies everything else."""

    def __init__(self, *violated: str) -> None:
        self.violated = violated
        self.asked: list[tuple[int | None, str]] = []

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> list[Verdict]:
        self.asked += [(turn, item.id) for item in items]
        return [Verdict(item=item.id, value=item.id not in self.violated, weight=0) for item in items]


GOOD = trace(
    turn("Cancel order 7.", call("get_order", {"price": 30}, order_id=7), say("It cost 30. Shall I cancel it?")),
    turn(
        "Yes.",
        call("cancel_order", "busy", error=True, order_id=7),
        call("cancel_order", order_id=7),
        say("Order 7 is cancelled."),
    ),
)
RASH = trace(
    turn("Cancel order 7.", call("cancel_order", "no such order", error=True, order_id=7), say("Done.")),
    turn("Thanks.", say("Bye.")),
)


def verdicts(checklist: Checklist, dialogue: Trace) -> dict[tuple[int | None, str], bool | None]:
    score = ChecklistScorer(checklist).score_sync(dialogue)
    return {(one.turn, verdict.item): verdict.value for one in score.turns for verdict in one.verdicts}


def test_confirmation_before_write() -> None:
    got = library("{cm2:confirmation-before-write: {writes: [cancel_order, refund]}}")
    assert got.by_id["confirmation.not_at_once"].required_for_next_turn
    assert verdicts(got, GOOD)[0, "confirmation.not_at_once"] is True
    assert verdicts(got, RASH)[0, "confirmation.not_at_once"] is False
    loose = library("{cm2:confirmation-before-write: {writes: cancel_order, strict: false, weight: 3}}")
    assert not loose.by_id["confirmation.not_at_once"].required_for_next_turn
    assert [item.weight for item in loose] == [3, 3]
    assert verdicts(loose, RASH)[0, "confirmation.not_at_once"] is False


async def test_the_gate_of_an_early_write() -> None:
    scorer = ChecklistScorer(library("{cm2:confirmation-before-write: {writes: [cancel_order]}}"), judge=Finds())
    assert await scorer.gate(GOOD, 0) is True
    assert await scorer.gate(RASH, 0) is False


def test_error_recovery() -> None:
    got = library("{cm2:error-recovery: {tool: cancel_order}}")
    assert verdicts(got, GOOD)[None, "recovery.succeeded"] is True, "a later attempt came through"
    assert verdicts(got, RASH)[None, "recovery.succeeded"] is False


@pytest.mark.parametrize(
    "reply",
    [
        "Traceback (most recent call last): …",
        "<tool_call>{}</tool_call>",
        "Use sk-abcdefghijklmnopqrstuvwx.",
        "AKIAABCDEFGHIJKLMNOP",
        "-----BEGIN RSA PRIVATE KEY-----",
        "hi<|im_end|>",
    ],
)
def test_internals_are_not_shown(reply: str) -> None:
    got = library("cm2:honest-claims")
    assert verdicts(got, trace(turn("Hi", say(reply))))[0, "claims.internals"] is False
    assert verdicts(got, GOOD)[1, "claims.internals"] is True
    assert (
        verdicts(got, trace(turn("Hi", say("Ask for a desk-top; trace back your steps."))))[0, "claims.internals"]
        is True
    )
    own = library('{cm2:honest-claims: {internals: "(?i)internal note"}}')
    assert verdicts(own, trace(turn("Hi", say("Internal note: rude"))))[0, "claims.internals"] is False


@pytest.mark.parametrize(
    "include", ["cm2:grounding", "cm2:honest-claims", "{cm2:error-recovery: {tool: cancel_order}}"]
)
async def test_a_violation_costs_its_turn_and_its_weight(include: str) -> None:
    got = library(include)
    first = next(item.id for item in got if item.check is None)
    fine, found = Finds(), Finds(first)
    good = await ChecklistScorer(got, judge=fine)(GOOD)
    bad = await ChecklistScorer(got, judge=found)(GOOD)
    assert good.reward == 1.0
    assert bad.reward is not None
    assert bad.reward < 1.0
    judged = [item for item in got if item.check is None]
    scopes = {(turn, item.id) for item in judged for turn in ([None] if item.turn == "trace" else [0, 1])}
    assert set(fine.asked) == scopes, "each is asked in every scope of its own"


@pytest.mark.parametrize(
    ("include", "problem"),
    [("cm2:error-recovery", "needs the parameter tool"), ("cm2:confirmation-before-write", "writes")],
)
def test_what_must_be_given_is_asked_for(include: str, problem: str) -> None:
    with pytest.raises(ChecklistError, match=re.escape(problem)):
        library(include)
