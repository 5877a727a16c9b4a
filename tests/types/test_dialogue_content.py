"""`Trace.content_hash`: what it counts, and what a door may change without changing it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.types.messages import (
    Blob,
    Message,
    Other,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolCallResponse,
    ToolSpec,
    Uri,
)
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.tool_content import content_text
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples
from tests.strategies import jsons, messages, objects, texts, traces


def trace(*dialogue: Message, **run: Any) -> Trace:
    return Trace.of(Run(id="r", messages=dialogue, **run))


def answer(text: Any, identity: str | None = None, **more: Any) -> Message:
    return Message(role="tool", parts=(ToolCallResponse(id=identity, response=text, **more),))


def asks(*calls: ToolCall) -> Message:
    return Message.of("assistant", calls=calls)


USER = Message.of("user", "Where are orders 7 and 8?")
SEVEN = ToolCall(id="1", name="get_order", arguments={"id": 7, "full": True})
EIGHT = ToolCall(id="2", name="get_order", arguments={"id": 8})
DIALOGUE = (
    Message.of("system", "Be brief."),
    USER,
    replace(asks(SEVEN, EIGHT), parts=(Reasoning(content="Both."), Text(content="Let me see."), SEVEN, EIGHT)),
    answer("shipped", "1"),
    answer({"status": "lost"}, "2"),
    Message(role="user", parts=(Text(content="And this?"), Uri(uri="https://x/y.png"), Blob(content="AA=="))),
    Message(role="assistant", parts=(Text(content="A cat."), Other(data={"type": "chart", "x": 1}))),
)


def _relabelled(message: Message, names: dict[str | None, str]) -> Message:
    """The message with other ids, names, marks and metadata."""
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolCall | ToolCallResponse) and part.id is not None:
            part = replace(part, id=names[part.id])
        if isinstance(part, ToolCallResponse):
            part = replace(part, error=not part.error)
        parts.append(part)
    return replace(message, parts=tuple(parts), name="someone", finish_reason="stop", extra={"weight": 0})


def _turned(value: Any) -> Any:
    """JSON with the keys of objects in another order, and whole numbers as floats."""
    if isinstance(value, dict):
        return {key: _turned(item) for key, item in reversed(value.items())}
    if isinstance(value, list):
        return [_turned(item) for item in value]
    if type(value) is int and float(value) == value and abs(value) < 2**53:
        return float(value)
    return value


@settings(max_examples=examples(60))
@given(traces())
def test_any_trace_has_a_hash_and_json_keeps_it(one: Trace) -> None:
    assert len(one.content_hash) == 64
    assert Trace.from_json(one.to_json()).content_hash == one.content_hash


@settings(max_examples=examples(60))
@given(st.lists(messages(), max_size=5))
def test_ids_names_marks_and_metadata_do_not_count(dialogue: list[Message]) -> None:
    given_ids = {part.id for one in dialogue for part in one.parts if isinstance(part, ToolCall | ToolCallResponse)}
    # an empty id is none: such calls are paired by their order alone
    names: dict[str | None, str] = {name: f"new-{number}" if name else "" for number, name in enumerate(given_ids)}
    other = [_relabelled(one, names) for one in dialogue]
    # a speaker's name is no part of the content, and the dialogue is cut alike with it
    assert trace(*other).content_hash == trace(*dialogue).content_hash


@settings(max_examples=examples(60))
@given(objects(), st.none() | texts() | jsons(3))
def test_the_order_of_keys_and_the_spelling_of_numbers_do_not_count(arguments: Any, result: Any) -> None:
    one = trace(asks(ToolCall(id="1", name="f", arguments=arguments)), answer(result, "1"))
    turned = _turned(result) if isinstance(result, dict | list) else result
    other = trace(asks(ToolCall(id="9", name="f", arguments=_turned(arguments))), answer(turned, "9"))
    assert one.content_hash == other.content_hash


@settings(max_examples=examples(60))
@given(objects() | st.lists(jsons(2), max_size=3) | st.booleans() | st.integers() | st.none())
def test_a_structure_counts_as_its_text_does(result: Any) -> None:
    if not isinstance(content_text(result), str):  # a list of texts is their lines
        written = trace(asks(SEVEN), answer(json.dumps(result, ensure_ascii=False), "1"))
        assert written.content_hash == trace(asks(SEVEN), answer(result, "1")).content_hash


def test_times_tokens_tools_and_executions_do_not_count() -> None:
    call = ModelCall(
        span_id="s",
        model="m",
        input=DIALOGUE[:2],
        output=DIALOGUE[2],
        message=2,
        tools=(ToolSpec(name="get_order"),),
        prompt_ids=(1, 2),
        completion_ids=(3,),
        logprobs=(-0.1,),
        usage={"input_tokens": 2},
    )
    ran = ToolRun(span_id="t", name="get_order", call_id="1", arguments=SEVEN.arguments, result="shipped")
    rich = trace(*DIALOGUE, calls=(call,), tools=(ran,), started=5, ended=9, attributes={"cm2.task.id": "t"}, user="u")
    assert replace(rich, outcomes={"reward": 1.0}).content_hash == trace(*DIALOGUE).content_hash


def test_what_formats_write_differently_is_the_same() -> None:
    split = replace(DIALOGUE[2], parts=(Text(content="Let me"), Reasoning(content="Both."), SEVEN, EIGHT))
    joined = replace(DIALOGUE[2], parts=(SEVEN, EIGHT, Text(content="Let me"), Reasoning(content="Both.")))
    assert trace(split).content_hash == trace(joined).content_hash
    assert trace(Message(role="user", parts=(Text(content="a"), Text(content=""), Text(content="b")))).content_hash == (
        trace(Message.of("user", "a\nb")).content_hash
    )
    both = Message(role="tool", parts=DIALOGUE[4].parts + DIALOGUE[3].parts)
    assert trace(*DIALOGUE[:3], both, *DIALOGUE[5:]).content_hash == trace(*DIALOGUE).content_hash
    assert trace(asks(ToolCall(name="f"))).content_hash == trace(asks(ToolCall(name="f", arguments={}))).content_hash
    blocks = [{"type": "text", "text": "ship"}, {"type": "text", "text": "ped"}]
    assert trace(asks(SEVEN), answer(blocks)).content_hash == trace(asks(SEVEN), answer("ship\nped")).content_hash


def test_a_system_prompt_that_only_the_model_was_shown_counts() -> None:
    call = ModelCall(span_id="s", input=DIALOGUE[:2], output=DIALOGUE[2], message=1)
    shown = trace(*DIALOGUE[1:], calls=(call,))
    assert shown.content_hash == trace(*DIALOGUE).content_hash
    sub_agent = replace(call, message=None, input=(Message.of("system", "You are another."), USER))
    assert trace(*DIALOGUE[1:], calls=(call, sub_agent)).content_hash == shown.content_hash


def test_the_runs_of_a_conversation_count_as_one_dialogue() -> None:
    first, second = Run(id="a", thread="t", messages=DIALOGUE[:5]), Run(id="b", thread="t", messages=DIALOGUE[5:])
    assert Trace(id="t", runs=(first, second)).content_hash == trace(*DIALOGUE).content_hash
    assert Trace.of(first).with_run(second).content_hash == trace(*DIALOGUE).content_hash


def _part(at: int, place: int, **changes: Any) -> Callable[[tuple[Message, ...]], tuple[Message, ...]]:
    def changed(dialogue: tuple[Message, ...]) -> tuple[Message, ...]:
        parts = list(dialogue[at].parts)
        one: Any = parts[place]
        parts[place] = replace(one, **changes)
        return (*dialogue[:at], replace(dialogue[at], parts=tuple(parts)), *dialogue[at + 1 :])

    return changed


CHANGES: dict[str, Callable[[tuple[Message, ...]], tuple[Message, ...]]] = {
    "system prompt": _part(0, 0, content="Be long."),
    "text": _part(1, 0, content="Where?"),
    "thinking": _part(2, 0, content="One."),
    "text beside calls": _part(2, 1, content="Hm."),
    "name of a call": _part(2, 2, name="cancel_order"),
    "argument": _part(2, 2, arguments={"id": 9, "full": True}),
    "type of an argument": _part(2, 2, arguments={"id": 7, "full": 1}),
    "arguments that are text": _part(2, 2, arguments='{"id": 7, "full": true}'),
    "answer": _part(3, 0, response="sent"),
    "structured answer": _part(4, 0, response={"status": "found"}),
    "answers crossed": lambda d: (*d[:3], answer("shipped", "2"), answer({"status": "lost"}, "1"), *d[5:]),
    "no answer": lambda d: (*d[:3], *d[4:]),
    "picture": _part(5, 1, uri="https://x/z.png"),
    "picture by value": _part(5, 2, content="AB=="),
    "where a picture stands": lambda d: (*d[:5], replace(d[5], parts=d[5].parts[::-1]), *d[6:]),
    "unknown part": _part(6, 1, data={"type": "chart", "x": 2}),
    "role": lambda d: (*d[:6], replace(d[6], role="user")),
    "order of messages": lambda d: (*d[:5], d[6], d[5]),
    "one message more": lambda d: (*d, USER),
    "an empty message more": lambda d: (*d, Message.of("assistant")),
    "order of calls": lambda d: (*d[:2], replace(d[2], parts=(*d[2].parts[:2], EIGHT, SEVEN)), *d[3:]),
    "an answer that nothing asked for": lambda d: (answer("stray", "9"), *d),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_counts(what: str) -> None:
    assert trace(*CHANGES[what](DIALOGUE)).content_hash != trace(*DIALOGUE).content_hash


def test_all_changes_have_hashes_of_their_own() -> None:
    hashes = {trace(*change(DIALOGUE)).content_hash for change in CHANGES.values()}
    assert len(hashes) == len(CHANGES)


@settings(max_examples=examples(60))
@given(st.lists(messages(), min_size=1, max_size=4), st.data())
def test_another_word_of_a_user_is_another_dialogue(dialogue: list[Message], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(dialogue)))
    said = (trace(*dialogue[:at], Message.of("user", f"word {n}"), *dialogue[at:]).content_hash for n in count())
    assert next(said) != next(said)
