"""What the model thought is shown to judges of its thinking alone, and proves nothing of what it said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cm2_agent.rewards import relative
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message, Reasoning, Text
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from tests.judge_server import Asked, answer, function_model, reply

SECRET = "The secret plan is to refund him."
THINKING = Item("plans", "Does the agent plan?", focus_on="assistant.reasoning")
SPEAKING = Item("polite", "Is the reply polite?")


def dialogue(*parts: Any, id: str = "t") -> Trace:
    said = (Message.of("user", "Hi"), Message(role="assistant", parts=parts))
    return Trace.of(Run(id=id, messages=said))


ONE = dialogue(Reasoning(content=SECRET), Text(content="Hello, how can I help you?"))


def careful(asked: Asked) -> dict[str, Any]:
    quotes = {"polite": ("assistant.reply", "how can I help you"), "plans": ("assistant.reasoning", SECRET)}
    return reply(*(answer(item["id"], "yes", 1, *quotes[item["id"]]) for item in asked.items))


@pytest.mark.parametrize("protocol", ["turn", "per_step"])
async def test_only_who_judges_the_thinking_is_shown_it(protocol: Any) -> None:
    asked: list[Asked] = []
    judge = LLMJudge(function_model(careful, asked=asked), protocol=protocol)
    got = await judge(ONE, 0, [THINKING, SPEAKING])
    assert [(verdict.item, verdict.value) for verdict in got] == [("plans", True), ("polite", True)]
    seen = {tuple(item["id"] for item in one.items): SECRET in one.text for one in asked}
    assert seen == {("plans",): True, ("polite",): False}


async def test_without_thinking_all_items_go_in_one_call() -> None:
    asked: list[Asked] = []
    one = dialogue(Text(content="Hello, how can I help you?"))
    answering = function_model(lambda seen: reply(*(answer(item["id"], "no") for item in seen.items)), asked=asked)
    await LLMJudge(answering)(one, 0, [THINKING, SPEAKING])
    assert len(asked) == 1


async def test_thinking_is_no_evidence_of_what_was_said() -> None:
    def leaning(asked: Asked) -> dict[str, Any]:
        return reply(answer("polite", "yes", 1, "assistant.reasoning", SECRET))

    (got,) = await LLMJudge(function_model(leaning))(ONE, 0, [SPEAKING])
    assert (got.value, got.cause) == (None, "content")
    assert "what was said and done" in str(got.explanation)


async def test_a_step_of_thinking_alone_is_a_step_that_said_nothing() -> None:
    asked: list[Asked] = []
    answering = function_model(lambda seen: reply(answer("polite", "no")), asked=asked)
    await LLMJudge(answering)(dialogue(Reasoning(content=SECRET)), 0, [SPEAKING])
    assert asked[0].parts(1) == [("assistant.reply", "")]


async def test_rollouts_are_compared_by_what_was_said_and_done() -> None:
    prompts: list[str] = []

    async def judge(prompt: str) -> str:
        prompts.append(prompt)
        return json.dumps({"scores": []})

    await relative(judge, version="1").group([ONE, dialogue(Text(content="Hello."), id="u")])
    assert "how can I help you" in prompts[0]
    assert SECRET not in prompts[0]
