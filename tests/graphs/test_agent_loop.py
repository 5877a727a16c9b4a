"""The agent's loop: calls that cannot be read are answered by an error, and the turn goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatResult

from cm2_agent import Checklist, Item, RolloutLimits, Task, run
from cm2_agent.graphs import agent
from tests.models.scripted_network import scripted

RAN: list[int] = []


def get_order(order_id: int) -> str:
    """Look up an order."""
    RAN.append(order_id)
    return "shipped, arrives on 2026-05-20"


class Scripted(GenericFakeChatModel):
    """Says the given messages, and keeps what it was shown."""

    seen: list[Any] = []  # noqa: RUF012 (pydantic copies defaults)

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *arguments: Any, **options: Any) -> ChatResult:
        self.seen.append(list(messages))
        return super()._generate(messages, *arguments, **options)


def saying(*messages: AIMessage) -> Any:
    RAN.clear()
    return Scripted(messages=iter(messages), seen=[])


def invalid(name: str | None = "get_order", id: str | None = "i1", error: str | None = "not JSON") -> Any:
    return {"name": name, "args": "{broken", "id": id, "error": error, "type": "invalid_tool_call"}


def valid(id: str | None = "v1", order_id: int = 7) -> Any:
    return {"name": "get_order", "args": {"order_id": order_id}, "id": id, "type": "tool_call"}


def answers(state: Any) -> dict[str, ToolMessage]:
    return {message.tool_call_id: message for message in state["messages"] if isinstance(message, ToolMessage)}


def test_a_call_that_cannot_be_read_goes_back_to_the_model() -> None:
    model = saying(AIMessage("One moment.", invalid_tool_calls=[invalid()]), AIMessage("On 2026-05-20."))
    state = agent(model, [get_order]).invoke({"messages": [("user", "When?")]})
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    told = answers(state)["i1"]
    assert (told.status, told.name) == ("error", "get_order")
    assert "not JSON" in told.text
    assert '{"name": "get_order", "arguments": {…}}' in told.text
    assert "The tools are" not in told.text
    assert model.seen[1][-1] is told
    assert RAN == []


async def test_calls_that_can_be_read_run_beside_it() -> None:
    both = AIMessage("", tool_calls=[valid(), valid("v2", 8)], invalid_tool_calls=[invalid()])
    state = await agent(saying(both, AIMessage("Done.")), [get_order]).ainvoke({"messages": [("user", "When?")]})
    told = answers(state)
    assert {name: one.status for name, one in told.items()} == {"v1": "success", "v2": "success", "i1": "error"}
    assert sorted(RAN) == [7, 8]
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "tool", "tool", "ai"]


def test_calls_without_an_id_are_answered_all_the_same() -> None:
    first = AIMessage(
        "", tool_calls=[valid(None), valid("", 8)], invalid_tool_calls=[invalid(id=None), invalid(None, None)]
    )
    state = agent(saying(first, AIMessage("Done.")), [get_order]).invoke({"messages": [("user", "When?")]})
    asked = state["messages"][1]
    ids = [call["id"] for call in (*asked.tool_calls, *asked.invalid_tool_calls)]
    assert len(set(ids)) == 4
    assert set(answers(state)) == set(ids)
    assert [answers(state)[id].status for id in ids] == ["success", "success", "error", "error"]
    assert "The tools are get_order." in answers(state)[ids[3]].text
    assert sorted(RAN) == [7, 8]
    again = AIMessage(
        "", tool_calls=[valid(None), valid("", 8)], invalid_tool_calls=[invalid(id=None), invalid(None, None)]
    )
    same = agent(saying(again, AIMessage("Done.")), [get_order]).invoke({"messages": [("user", "When?")]})
    assert set(answers(same)) == set(ids)


def test_a_providers_error_is_shortened_to_what_is_wrong() -> None:
    error = "Function get_order arguments:\n\n{broken\n\nare not valid JSON.\nFor troubleshooting, visit: x"
    model = saying(AIMessage("", invalid_tool_calls=[invalid(error=error)]), AIMessage("Done."))
    told = answers(agent(model, [get_order]).invoke({"messages": [("user", "When?")]}))["i1"].text
    assert "are not valid JSON" in told
    assert "troubleshooting" not in told
    long = saying(AIMessage("", invalid_tool_calls=[invalid(error="x" * 10_000)]), AIMessage("Done."))
    assert len(answers(agent(long, [get_order]).invoke({"messages": [("user", "When?")]}))["i1"].text) < 1_000


def test_an_agent_without_tools_says_so_too() -> None:
    model = saying(AIMessage("", invalid_tool_calls=[invalid()]), AIMessage("Done."))
    state = agent(model, []).invoke({"messages": [("user", "When?")]})
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    answer = answers(state)["i1"].text
    assert "There are no tools: answer in words." in answer
    assert "Write the call again" not in answer


CHECKS = Checklist(
    Item("called", check={"called": "get_order"}), Item("date", check={"reply_matches": "2026"}), name="c"
)


async def dialogue(texts: Sequence[str], **limits: Any) -> tuple[Any, Any]:
    RAN.clear()
    task = Task(id="t", turns=("Where is order 7?",))
    model = scripted([f"{text}<|im_end|>" for text in texts])
    rolled = run(
        agent(model, [get_order]), [task], checklist=CHECKS, allow_real=["get_order"], limits=RolloutLimits(**limits)
    )
    async for trace, score in rolled:
        return trace, score
    raise AssertionError("no dialogue")


@pytest.mark.parametrize(
    "broken",
    [
        '<tool_call>{"name": "get_order", "arguments": {"order_id": 7}}',
        '<tool_call>{"name": "get_order", "arguments": {"order_id": 7}</tool_call>',
        '<tool_call>{"name": "get_order"</tool_call>It is fine.',
        '{"name": "get_order", "parameters": {"order_id": 7}}',
        '<think>hm</think><tool_call>{"name": "get_order", "args": {"order_id": 7}}</tool_call>',
    ],
)
async def test_a_local_model_calls_again(broken: str) -> None:
    good = '<tool_call>{"name": "get_order", "arguments": {"order_id": 7}}</tool_call>'
    trace, score = await dialogue([broken, good, "It arrives on 2026-05-20."])
    assert RAN == [7]
    assert len(trace.runs[0].tools) == 1
    first, second, last = trace.steps
    assert [response.error for response in first.responses] == [True]
    assert [response.error for response in second.responses] == [False]
    assert (last.is_reply, trace.failure) == (True, None)
    assert score.reward == 1.0
    assert all(call.untrainable is None for call in trace.calls)


async def test_the_limit_of_steps_ends_a_model_that_never_learns() -> None:
    good = '<tool_call>{"name": "get_order", "arguments": {"order_id": 7}}</tool_call>'
    (broken, _), (calling, _) = [await dialogue([text] * 9, max_steps=3) for text in ("<tool_call>{", good)]
    assert broken.attributes["cm2.cut"] == calling.attributes["cm2.cut"] == "steps"
    assert len(broken.calls) == len(calling.calls) < 9


async def test_thinking_is_neither_run_nor_said() -> None:
    drafted = (
        '<think>Shall I <tool_call>{"name": "get_order", "arguments": {"order_id": 7}}</tool_call>? In 2026.</think>'
    )
    trace, score = await dialogue([f"{drafted}I cannot say."])
    assert RAN == []
    assert {verdict.item: verdict.value for verdict in score.verdicts} == {"called": False, "date": False}
    assert trace.steps[0].message.text == "I cannot say."
    assert "In 2026." in trace.steps[0].message.reasoning


def test_the_system_message_is_the_dialogues_own_where_it_has_one() -> None:
    model = saying(AIMessage("Hello."), AIMessage("Hello."))
    graph = agent(model, [], system="Be brief.")
    graph.invoke({"messages": [("user", "Hi")]})
    graph.invoke({"messages": [SystemMessage("Be kind."), ("user", "Hi")]})
    assert [[message.text for message in seen] for seen in model.seen] == [["Be brief.", "Hi"], ["Be kind.", "Hi"]]
