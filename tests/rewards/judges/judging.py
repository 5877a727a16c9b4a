"""A dialogue, two items and a judge over real HTTP, for the tests of the judge. `closed` is a fixture that closes its
connections after a test."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from cm2_agent.rewards.judges.client import openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Verdict
from tests.judge_server import FREE, JudgeServer, answer, reply
from tests.rewards.talk import call, say, trace, turn

ONE = trace(
    turn(
        "Where is order 7?", call("get_order", {"date": "May 3, 2026"}, order_id=7), say("It arrives on May 3, 2026.")
    ),
    turn(
        "And order 8?",
        call("get_order", "no such order", order_id=8, error=True),
        say("There is no order 8, I am sorry."),
    ),
)
DATE = Item("date", "Is the date told?")
TWO = [DATE, Item("looked", "Was the order looked up?", focus_on="tool.content")]
DATE_YES = answer("date", "yes", 2, quote="arrives on May 3, 2026")
GOOD = json.dumps(reply(DATE_YES))

OPEN: list[LLMJudge] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Each test file that judges over HTTP takes it by a name of its own."""
    yield
    while OPEN:
        await OPEN.pop().aclose()


def judging(server: JudgeServer, **options: Any) -> LLMJudge:
    given: dict[str, Any] = {"price": FREE, "backoff": 0.0, "retries": 2}
    OPEN.append(LLMJudge(openai_judge_model(server.base_url, "stub"), **(given | options)))
    return OPEN[-1]


async def ask(
    server: JudgeServer, items: Sequence[Item] = (DATE,), turn: int | None = 0, **options: Any
) -> list[Verdict]:
    return list(await judging(server, **options)(ONE, turn, items))
