"""Messages: what they hold, what JSON keeps of them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from cm2_agent.errors import TraceError
from cm2_agent.types.messages import Message, Other, Reasoning, Text, ToolCall, ToolCallResponse, ToolSpec
from tests.strategies import messages, tool_specs


@given(messages())
def test_a_message_through_json(message: Message) -> None:
    written = message.to_json()
    again = Message.from_json(written)
    assert again == message
    assert again.to_json() == written
    assert again.hash == message.hash


@given(tool_specs())
def test_a_tool_through_json(tool: ToolSpec) -> None:
    assert ToolSpec.from_json(tool.to_json()) == tool
    assert ToolSpec.from_json({"type": "function", "function": tool.to_json()}) == tool


def test_a_message_shows_its_parts_by_kind() -> None:
    call = ToolCall(id="1", name="get_order", arguments={"id": 7})
    answer = ToolCallResponse(id="1", response="shipped")
    parts = (Reasoning(content="Look it up."), Text(content="One moment."), call, Text(content="Please wait."), answer)
    message = Message(role="assistant", parts=parts)
    assert message.text == "One moment.\nPlease wait."
    assert message.reasoning == "Look it up."
    assert message.tool_calls == (call,)
    assert message.responses == (answer,)
    assert Message.of("assistant", calls=[call]).parts == (call,)  # no empty text


def test_what_is_unknown_stays() -> None:
    part = {"type": "thought", "signature": "x"}
    data = {"role": "user", "parts": [part, {"type": "text", "content": "a", "lang": "en"}], "weight": 3}
    message = Message.from_json(data)
    assert message.parts[0] == Other(data=part)
    assert message.to_json() == data


def test_an_answer_under_the_older_key_is_read() -> None:
    part = {"type": "tool_call_response", "id": "1", "result": "shipped"}
    message = Message.from_json({"role": "tool", "parts": [part]})
    assert message.responses == (ToolCallResponse(id="1", response="shipped"),)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"role": "robot"}, "role 'robot'; expected one of system, user"),
        ("hello", "role None"),
        ({"role": "user", "parts": "hello"}, "parts are str; expected a list"),
        ({"role": "user", "parts": ["hello"]}, "a message part is str 'hello'; expected an object with a type"),
        ({"role": "user", "parts": [{"type": "text"}]}, "a text part has content None; expected text"),
        (
            {"role": "user", "parts": [{"type": "tool_call", "name": "f", "id": 3}]},
            "has id 3; expected text or nothing",
        ),
    ],
)
def test_a_malformed_message_is_refused(data: Any, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        Message.from_json(data)


@pytest.mark.parametrize("data", [None, {}, {"name": 3}, {"function": "f"}, {"name": "f", "parameters": [1]}])
def test_a_malformed_tool_is_refused(data: Any) -> None:
    with pytest.raises(TraceError, match=r"expected an object with a name|expected a JSON schema object"):
        ToolSpec.from_json(data)
