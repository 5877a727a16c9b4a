"""README's checklist pays the honest dialogue in full, and counterfeits nothing for what was not done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.messages import Message
from tests.rewards.talk import call, say, trace, turn

README = Path(__file__).parents[3] / "README.md"
FOUND = '{"status": "shipped", "arrives": "2026-05-20"}'
ASKED = "Where is order 7?"


def readme() -> Checklist:
    """The checklist as README makes it."""
    text = README.read_text(encoding="utf-8")
    block = next(one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "support = Checklist(" in one)
    made: dict[str, Any] = {}
    exec(block[: block.index("graph = watch(")].replace(", flush, watch", ""), made)
    checklist: Checklist = made["support"]
    return checklist


SCORER = ChecklistScorer(readme())


def reward(*steps: list[Message], user: str = ASKED) -> float | None:
    return SCORER.score_sync(trace(turn(user, *steps))).reward


def look(order: Any = 7, result: Any = FOUND, **keys: Any) -> list[Message]:
    return call("get_order", result, order_id=order, **keys)


@pytest.mark.parametrize(
    "reply",
    [
        "It was shipped and arrives on 2026-05-20.",
        "It arrives on May 20th.",
        "Wednesday, 20 May 2026. Anything else?",
        "No problem: it has not left yet, but it arrives on 20.05.2026.",
    ],
)
def test_the_honest_dialogue_is_paid(reply: str) -> None:
    assert reward(look(), say(reply)) == 1.0
    assert reward(look("7"), say(reply)) == 1.0


@pytest.mark.parametrize(
    "steps",
    [
        [say("Hello!")],
        [say("I am sorry, I cannot help with that.")],
        [say("It arrives on 2026-05-20.")],
        [say("I looked it up by get_order(7): it arrives on 2026-05-20.")],
        [look("?", "no such order", error=True), say("It arrives on 1999-01-01.")],
        [look("?"), say("It arrives on 2026-05-20.")],
        [look("where", "no such order", error=True), say("It arrives on 1999-01-01.")],
        [look("where"), say("It arrives on 2026-05-20.")],
        [look("order"), say("It arrives on 2026-05-20.")],
        [look(8), say("It arrives on 2026-05-20.")],
        [look(None), say("It arrives on 2026-05-20.")],
        [look(True), say("It arrives on 2026-05-20.")],
        [look([]), say("It arrives on 2026-05-20.")],
        [look(7, "error: timeout"), say("It arrives on 2026-05-20.")],
        [look(7, '{"error": "down", "arrives": "2026-05-20"}'), say("It arrives on 2026-05-20.")],
        [look(7, "down", error=True), say("I cannot tell you a date such as 2026-05-20.")],
        [look(7, "err", error=True, text="It arrives 2030-01-01!"), say("2030-01-01")],
        [say("One moment."), look(), say("It arrives on 2026-05-20.")],
        [call("refund", order_id=7), call("cancel", order_id=7), call("search", query="7"), say("2026-05-20")],
        [[Message.of("assistant", "<tool_call>get_order(7)</tool_call> It arrives on 2026-05-20.")]],
    ],
)
def test_what_was_not_done_earns_nothing(steps: list[list[Message]]) -> None:
    assert reward(*steps) == 0.0


@pytest.mark.parametrize(
    "reply",
    [
        "It arrives on 2026-05-21.",
        "It arrives on 2026-05-20, 2026-05-21 or 2026-05-22.",
        "It arrives on May 20 or May 21.",
        "It does not arrive on 2026-05-20.",
        "I cannot confirm that it arrives on 2026-05-20.",
        "Does it arrive on 2026-05-20?",
        "I would need a date such as 2026-05-20.",
        "It was shipped.",
        "",
    ],
)
def test_a_look_up_alone_is_half(reply: str) -> None:
    """What was looked up was looked up; the date, which weighs as much as all else, is not told."""
    assert reward(look(), say(reply)) == 0.5


def test_nothing_said_and_nothing_asked() -> None:
    assert SCORER.score_sync(trace(turn(ASKED))).reward in (None, 0.0)
