"""LangChain's messages and ours: a trip both ways loses nothing that both can hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from cm2_agent.langchain_messages import from_langchain, plain, to_langchain
from cm2_agent.tracing.llm_results import tool_specs
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import Blob, Message, Other, Part, Reasoning, Text, ToolCall, ToolCallResponse, Uri

text = st.text(max_size=20)
some = st.text(min_size=1, max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
extras: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
    {"annotations": st.lists(text, max_size=2)}
)
media = st.sampled_from(["image", "audio", "video", "file"])
mime = st.none() | st.sampled_from(["image/png", "audio/wav"])
spoken: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, content=some, extra=extras),
    st.builds(Reasoning, content=some, extra=extras),
    st.builds(
        Uri, uri=some.map(lambda path: f"https://example.org/{path}"), modality=media, mime_type=mime, extra=extras
    ),
    st.builds(
        Blob, content=st.binary(max_size=6).map(lambda raw: raw.hex()), modality=media, mime_type=mime, extra=extras
    ),
    st.builds(Other, data=st.fixed_dictionaries({"type": st.just("citation"), "of": values})),
)
tool_calls: st.SearchStrategy[Part] = st.builds(
    ToolCall,
    id=some,
    name=some,
    arguments=st.dictionaries(text, values, max_size=3) | st.just("{not json"),
    extra=st.just({}),
)


def _valid_calls_first(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The one order that LangChain has: content, then calls, then calls that could not be read."""
    return tuple(sorted(parts, key=lambda part: isinstance(part, ToolCall) and 1 + isinstance(part.arguments, str)))


names = st.none() | some
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Message, role=st.sampled_from(["system", "user"]), parts=st.lists(spoken, max_size=3).map(tuple), name=names
    ),
    st.builds(
        Message,
        role=st.just("assistant"),
        parts=st.lists(spoken | tool_calls, max_size=4).map(_valid_calls_first),
        name=names,
        finish_reason=st.none() | st.sampled_from(["stop", "length"]),
    ),
    st.builds(
        Message,
        role=st.just("tool"),
        parts=st.builds(
            ToolCallResponse,
            id=some,
            response=text
            | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": some}), min_size=1, max_size=2),
            error=st.booleans(),
        ).map(lambda part: (part,)),
        name=names,
    ),
)


@given(st.lists(messages, max_size=4))
def test_ours_through_langchain(dialogue: list[Message]) -> None:
    assert [from_langchain(message) for message in to_langchain(dialogue)] == dialogue


@given(st.lists(messages, max_size=4))
def test_langchains_through_ours(dialogue: list[Message]) -> None:
    converted = to_langchain(dialogue)
    again = to_langchain([from_langchain(message) for message in converted])
    assert [message.model_dump() for message in again] == [message.model_dump() for message in converted]


def one(message: BaseMessage) -> Message:
    return from_langchain(message)


def test_reasoning_in_every_providers_form() -> None:
    forms: list[Any] = [
        {"content": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "so"}]},
        {"content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "so"}]},
        {
            "content": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                {"type": "text", "text": "so"},
            ]
        },
        {"content": "so", "additional_kwargs": {"reasoning_content": "hm"}},
    ]
    for form in forms:
        message = one(AIMessage(**form))
        assert (message.reasoning, message.text) == ("hm", "so")


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "text": None},
        {"type": "text", "text": 7},
        {"type": "thinking", "thinking": None},
        {"type": "reasoning", "summary": []},
        {"type": "uri"},
        {"type": "tool_call", "name": None},
    ],
)
def test_a_block_without_what_its_type_needs_can_be_read_again(block: dict[str, Any]) -> None:
    message = one(HumanMessage([{"type": "text", "text": "so"}, block]))
    assert message.text == "so"
    assert Message.from_json(message.to_json()) == message
    data = message.parts[1].data  # type: ignore[union-attr]
    assert block in (data, data.get("value"))


def test_images_in_every_providers_form() -> None:
    blob = Blob(content="QUJD", modality="image", mime_type="image/png")
    blocks: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        {"type": "image_url", "image_url": "data:image/png;base64,QUJD"},
        {"type": "image", "base64": "QUJD", "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": "QUJD", "mime_type": "image/png"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
    ]
    for block in blocks:
        assert one(HumanMessage(content=[block])).parts == (blob,)
    link = one(HumanMessage(content=[{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]))
    assert link.parts == (Uri(uri="https://example.org/a.png", modality="image"),)


def test_tool_calls_good_and_bad() -> None:
    message = one(
        AIMessage(
            content=[
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "a", "name": "look", "input": {"key": 1}},
            ],
            tool_calls=[{"name": "look", "args": {"key": 1}, "id": "a"}],
            invalid_tool_calls=[
                {"name": "look", "args": "{key: 2", "id": "b", "error": "not JSON", "type": "invalid_tool_call"}
            ],
            response_metadata={"stop_reason": "tool_use"},
        )
    )
    assert message.parts == (
        Text(content="let me see"),
        ToolCall(id="a", name="look", arguments={"key": 1}),
        ToolCall(id="b", name="look", arguments="{key: 2", extra={"error": "not JSON"}),
    )
    assert message.finish_reason == "tool_use"
    back = to_langchain([message])[0]
    assert isinstance(back, AIMessage)
    assert [(call["name"], call["args"], call["error"]) for call in back.invalid_tool_calls] == [
        ("look", "{key: 2", "not JSON")
    ]


def test_roles_and_errors() -> None:
    assert one(ChatMessage(role="developer", content="be brief")).role == "system"
    assert one(SystemMessage("be brief")) == Message.of("system", "be brief")
    failed = one(ToolMessage(content="no such order", tool_call_id="a", status="error", name="look"))
    assert failed.responses == (ToolCallResponse(id="a", response="no such order", error=True),)
    assert failed.name == "look"
    two = Message(
        role="tool", parts=(ToolCallResponse(id="a", response={"x": 1}), ToolCallResponse(id="b", response=None))
    )
    assert [(message.content, getattr(message, "tool_call_id", None)) for message in to_langchain([two])] == [
        ('{"x":1}', "a"),
        ("", "b"),
    ]


def test_tool_definitions_in_every_form() -> None:
    schema = {"type": "object", "properties": {"key": {"type": "integer"}}}
    forms: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": schema}},
        {"type": "function", "name": "look", "description": "Look.", "parameters": schema},
        {"name": "look", "description": "Look.", "input_schema": schema},
    ]
    assert len(set(map(str, tool_specs(forms)))) == 1
    assert tool_specs([{"type": "web_search"}])[0].name == "web_search"
    assert tool_specs(None) == ()


anything = values | st.floats() | st.binary() | st.just(object)


@given(st.recursive(anything, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=6))
def test_plain_is_json_and_leaves_json_alone(value: Any) -> None:
    out = plain(value)
    assert plain(json.loads(canonical_json(out))) == out


def test_plain_of_what_cannot_be_looked_at() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

        def model_dump(self, mode: str) -> Any:
            raise RuntimeError("no")

    class Colour(StrEnum):
        RED = "red"

    assert [plain(item) for item in (Colour.RED, IntEnum("Size", "SMALL").SMALL, np.float64(0.5))] == ["red", 1, 0.5]  # type: ignore[attr-defined]
    loop: dict[str, Any] = {"a": 1}
    loop["left"] = loop["right"] = [loop, loop]
    again = "<dict within itself>"
    assert plain([Hostile(), loop]) == ["<Hostile>", {"a": 1, "left": [again] * 2, "right": [again] * 2}]


@given(values)
def test_plain_of_json_is_the_same(value: Any) -> None:
    assert plain(value) == value


def test_plain_with_a_limit_reads_no_further() -> None:
    class Rows(list[int]):
        read = 0

        def __iter__(self) -> Any:
            for number in range(10**9):
                type(self).read += 1
                yield number

        def __len__(self) -> int:
            return 10**9

    kept = plain({"name": "a", "rows": Rows(), "more": 1}, limit=1000)
    assert kept["rows"][-1].endswith("more)")
    assert Rows.read < 200
    assert kept["…"] == "1 more keys"
    assert plain("x" * 50, limit=10) == "x" * 10 + "… (50 characters)"
    assert plain([[1, 2], {"a": None}], limit=1000) == [[1, 2], {"a": None}]
    assert len(str(plain([HumanMessage("y" * 10_000)] * 3, limit=100))) < 400


def test_a_refusal_through_both_and_into_a_chat_template() -> None:
    from cm2_agent.models.chat_template import template_messages

    refused = AIMessage("", additional_kwargs={"refusal": "I cannot help."})
    ours = from_langchain(refused)
    assert ours.text == "I cannot help."
    assert [from_langchain(message) for message in to_langchain([ours])] == [ours]
    assert template_messages(to_langchain([ours])) == [{"role": "assistant", "content": "I cannot help."}]
