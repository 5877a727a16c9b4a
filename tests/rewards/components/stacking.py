"""What the tests of a stack share: a checklist, dialogues under it, components and a judge."""

from __future__ import annotations

from typing import Any

from cm2_agent.rewards.components.component import RewardComponent
from cm2_agent.rewards.components.stack import Stack
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn

LOOKS = Checklist(
    Item("looks", check={"called": "look"}, required_for_next_turn=True),
    Item("replies", check={"replied": True}, weight=3),
    name="looks",
)
GOOD = trace(turn("Where?", call("look"), say("There")), id="good")
MUTE = trace(turn("Where?", call("look")), id="mute")


def constant(name: str, value: Any, *, of_group: bool = False) -> RewardComponent:
    return RewardComponent(
        lambda given: [value for _ in given] if of_group else value, name=name, version="1", of_group=of_group
    )


async def score(*rewards: Any, of: Trace = GOOD, task: Task | None = None) -> Score:
    return await Stack(*rewards)(of, task)


def half_judged() -> Checklist:
    return Checklist(Item("replies", check={"replied": True}, weight=9), Item("kind", "Is it kind?"), name="half")


async def sometimes(trace: Trace, turn: int | None, items: Any) -> list[Verdict]:
    return [
        Verdict(item=item.id, value=None if trace.id == "guess" else trace.id == "good", weight=0, cause="content")
        for item in items
    ]
