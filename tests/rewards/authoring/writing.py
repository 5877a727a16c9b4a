"""A reference dialogue, three items, a scripted model and a judge that reads, for the tests of the checklist writer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from cm2_agent.rewards.authoring.writer import ChecklistWriter, WrittenChecklist
from cm2_agent.rewards.judges.transcript import part_texts
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn

GOOD = trace(
    turn(
        "Where is order 7?",
        call("get_order", {"arrives": "2026-05-20"}, order_id=7),
        say("Order 7 arrives on 2026-05-20."),
    ),
    turn("Cancel it.", call("cancel", {"ok": True}, order_id=7), say("Order 7 is cancelled.")),
    id="good",
)


Data = dict[str, Any]


def at(turn: int, step: int, source: str, snippet: str) -> list[Data]:
    return [{"turn": turn, "step": step, "from": source, "snippet": snippet}]


def lookup(**more: Any) -> Data:
    return {
        "id": "looks_up",
        "question": "Is order 7 looked up?",
        "turn": 0,
        "check": {"called": "get_order", "with": {"order_id": 7}},
        "evidence": at(0, 0, "assistant.tool_calls", 'get_order {"order_id":7}'),
        "required_for_next_turn": True,
        **more,
    }


def date(**more: Any) -> Data:
    return {
        "id": "tells_date",
        "question": "Does the reply say that order 7 arrives on 2026-05-20?",
        "turn": 0,
        "focus_on": "assistant.reply",
        "depends_on": ["looks_up"],
        "evidence": at(0, 1, "assistant.reply", "arrives on 2026-05-20"),
        "weight": 2,
        **more,
    }


def cancels(**more: Any) -> Data:
    return {
        "id": "cancels",
        "question": "Is order 7 cancelled?",
        "turn": 1,
        "check": {"called": "cancel", "succeeded": True},
        "evidence": at(1, 0, "tool.content", '"ok":true'),
        **more,
    }


class Script:
    """A model that gives these replies in turn, and keeps what it was shown."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.shown: list[list[ModelMessage]] = []

    def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.shown.append(list(messages))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        text = reply if isinstance(reply, str) else json.dumps({"items": reply})
        return ModelResponse(parts=[TextPart(content=text)])

    def question(self, number: int) -> str:
        last = self.shown[number][-1]
        assert isinstance(last, ModelRequest)
        return "".join(str(part.content) for part in last.parts if isinstance(part, UserPromptPart))


async def label(
    *replies: Any, reference: Trace = GOOD, task: Task | None = None, **options: Any
) -> tuple[WrittenChecklist, Script]:
    script = Script(*replies)
    return await ChecklistWriter(FunctionModel(script, model_name="scripted"), **options)(reference, task), script


class Reader:
    """A judge that reads: an item holds from the step on whose focused part holds the question's date, number or quoted
    words; `broken` items get no verdict."""

    def __init__(self, *broken: str, always: bool = False) -> None:
        self.broken, self.always = broken, always
        self.calls = 0

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> list[Verdict]:
        self.calls += 1
        steps = trace.steps if turn is None else trace.turns[turn].steps
        return [
            self._verdict(item, [" ".join(part_texts(step, item.focus_on or "assistant.reply")) for step in steps])
            for item in items
        ]

    def _verdict(self, item: Item, texts: list[str]) -> Verdict:
        if item.id in self.broken:
            return Verdict(item=item.id, value=None, weight=0, cause="content", explanation="cannot tell")
        (wanted,) = re.findall(r"\d{4}-\d\d-\d\d|\d+ USD", str(item.question))[:1]
        row = next((row for row, text in enumerate(texts, 1) if wanted in text), None)
        if item.kind == "avoid":
            return Verdict(item=item.id, value=row is None, weight=0)
        return Verdict(
            item=item.id,
            value=self.always or row is not None,
            weight=0,
            step=row or (len(texts) if self.always else None),
        )
