"""A message is spelled as its JSON is, in both orders of the keys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.types.json_values import canonical_json, json_text
from cm2_agent.types.message_text import spellings
from cm2_agent.types.messages import Message, Text, ToolCall, ToolCallResponse, reads_back
from tests import strategies
from tests.fuzzing import examples


def plain() -> st.SearchStrategy[Any]:
    """Parts without anything unusual, whose spelling takes the short way."""
    words = strategies.texts()
    return st.one_of(
        st.builds(Text, content=words),
        st.builds(ToolCall, id=words, name=words, arguments=strategies.jsons()),
        st.builds(ToolCallResponse, id=words, response=words),
    )


@settings(max_examples=examples(100))
@given(message=strategies.messages(), parts=st.lists(plain(), max_size=3))
def test_a_message_is_spelled_as_its_json(message: Message, parts: list[Any]) -> None:
    short = Message(role=message.role, parts=tuple(parts), name=message.name, finish_reason=message.finish_reason)
    for one in (message, short):
        assert spellings(one) == (json_text(one.to_json()), canonical_json(one.to_json()))
        assert not reads_back(one) or Message.from_json(one.to_json()) == one
    assert reads_back(short)


@pytest.mark.parametrize(
    "wrong",
    [
        Message(role='x","y":"', parts=()),  # type: ignore[arg-type]  # what nothing checks before it is stored
        Message(role="user", name=7),  # type: ignore[arg-type]
        Message(role="user", parts=(Text(content=7),)),  # type: ignore[arg-type]
        Message(role="assistant", parts=(ToolCall(id=7, name="n"),)),  # type: ignore[arg-type]
        Message(role="tool", parts=(ToolCallResponse(id="c", response="r", error=1),)),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_message_is_spelled_as_its_json_too(wrong: Message) -> None:
    assert spellings(wrong) == (json_text(wrong.to_json()), canonical_json(wrong.to_json()))


def test_what_is_no_json_is_refused() -> None:
    for value in (float("nan"), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            spellings(Message(role="assistant", parts=(ToolCall(id="c", name="n", arguments=value),)))
