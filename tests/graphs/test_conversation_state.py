"""A dialogue's state as bytes: every JSON value, message and run comes back exactly, and each is written once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from cm2_agent.graphs.conversation_state import MessageEncoder, RunEncoder, dump, load
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples
from tests.strategies import traces

texts = st.text(st.characters(exclude_categories=()))  # lone surrogates too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
@example(["\ud800\udc00", 2**70])
@example({"\ud800": "\U00010000"})
def test_json_comes_back_exactly(value: Any) -> None:
    again = load(dump(value))
    assert again == value
    assert json.dumps(again) == json.dumps(value)  # 1 and 1.0 and true are not the same


@given(st.lists(st.tuples(st.sampled_from(["human", "ai", "tool"]), texts, json_values), max_size=6))
def test_messages_come_back_exactly_and_each_is_written_once(said: list[tuple[str, str, Any]]) -> None:
    made: dict[str, Any] = {
        "human": lambda text, value: HumanMessage(text),
        "ai": lambda text, value: AIMessage(
            text,
            tool_calls=[{"name": "f", "args": {"x": value}, "id": "1", "type": "tool_call"}],
            response_metadata={"ids": [1, 2]},
        ),
        "tool": lambda text, value: ToolMessage(text, tool_call_id="1", status="error", artifact=value),
    }
    messages = [made[kind](text, value) for kind, text, value in said]
    written = MessageEncoder()
    blobs = written.blobs(messages)
    assert MessageEncoder().messages(blobs) == messages
    again = written.blobs([*messages, HumanMessage("more")])
    assert all(one is other for one, other in zip(blobs, again, strict=False))


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(traces(), st.integers(0, 3))
def test_runs_come_back_exactly_and_another_process_goes_on_with_them(trace: Trace, cut: int) -> None:
    first, second, reader = RunEncoder(), RunEncoder(), RunEncoder()
    blobs = [dump(first.write(one)) for one in trace.runs[:cut]]
    assert tuple(second.read(load(blob)) for blob in blobs) == trace.runs[:cut]
    blobs += [dump(second.write(one)) for one in trace.runs[cut:]]
    assert tuple(reader.read(load(blob)) for blob in blobs) == trace.runs


def test_a_message_is_written_once_however_many_calls_saw_it() -> None:
    said = Message.of("user", "x" * 1000)
    calls = tuple(ModelCall(span_id=str(number), input=(said,) * 3, output=said) for number in range(10))
    writer = RunEncoder()
    first = dump(writer.write(Run(id="1", messages=(said,), calls=calls)))
    again = Message.of("user", "x" * 1000)
    second = dump(writer.write(Run(id="2", messages=(again,))))
    assert first.count(b"x" * 1000) == 1
    assert second.count(b"xx") == 0


@pytest.mark.parametrize("value", [object(), {1, 2}, {"x": object()}])
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        dump(value)
