"""Traces: how runs are cut into turns and steps, which call answers what, and why a call cannot be trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from cm2_agent.errors import TraceError
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.trace import Step, Trace
from tests.fuzzing import examples
from tests.strategies import traces


def message(role: Any, text: str = "", *calls: ToolCall) -> Message:
    return Message.of(role, text, calls)


def answers(*responses: ToolCallResponse) -> Message:
    return Message(role="tool", parts=responses)


LOOK = ToolCall(id="1", name="get_order", arguments={"id": 7})
SHIPPED = ToolCallResponse(id="1", response="shipped")
GOOD = ModelCall(
    span_id="s",
    prompt_ids=(1, 2),
    completion_ids=(3,),
    logprobs=(-0.5,),
    sampling={"temperature": 1.0, "top_p": 1, "top_k": 0},
)


def test_a_greeting_and_two_messages_of_the_user_are_one_turn() -> None:
    greeting, one, two, reply = (
        message("assistant", "Welcome."),
        message("user", "Hi"),
        message("user", "Where is 7?"),
        message("assistant", "It is shipped."),
    )
    (turn,) = Trace.of(Run(id="a", messages=(greeting, one, two, reply))).turns
    assert [step.message for step in turn.steps] == [greeting, reply]
    assert turn.user == (one, two)
    later = Trace.of(Run(id="a", messages=(greeting, one, reply, two, reply)))
    assert [(len(turn.user), len(turn.steps)) for turn in later.turns] == [(1, 2), (1, 1)]


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(traces())
def test_a_trace_through_json(trace: Trace) -> None:
    written = trace.to_json()
    again = Trace.from_json(written)
    assert again == trace
    assert again.to_json() == written
    assert sum(len(turn.steps) for turn in trace.turns) == len(trace.steps)
    assert [step.number for step in trace.steps] == list(range(len(trace.steps)))


def test_a_dialogue_is_cut_at_user_messages() -> None:
    first = Run(
        id="a",
        thread="t",
        messages=(
            message("assistant", "Welcome."),
            message("user", "Where is order 7?"),
            message("assistant", "", LOOK),
            answers(SHIPPED),
            message("assistant", "It is shipped."),
        ),
    )
    goodbye = (message("user", "Well"), message("user", "thanks"), message("assistant", "Bye."), message("user"))
    second = Run(id="b", thread="t", messages=goodbye)
    trace = Trace(id="t", runs=(first,)).with_run(second)
    assert [[one.text for one in turn.user] for turn in trace.turns] == [["Where is order 7?"], ["Well", "thanks"]]
    assert [len(turn.steps) for turn in trace.turns] == [3, 1]  # the greeting is of the first user's turn
    assert [step.is_reply for step in trace.steps] == [True, False, True, True]
    assert trace.steps[1].response_to(LOOK) == SHIPPED
    shorter = replace(second, messages=second.messages[:1])
    assert trace.with_run(shorter).runs == (first, shorter)
    assert len(trace.with_run(shorter).turns) == 1  # nobody answered the second


def test_a_response_is_found_by_id_and_by_position_where_ids_are_missing() -> None:
    calls = (ToolCall(name="a"), ToolCall(name="b"))
    nameless = (ToolCallResponse(response=1), ToolCallResponse(response=2))
    step = Step(turn=0, index=0, number=0, message=message("assistant", "", *calls), responses=nameless)
    assert [step.response_to(call) for call in calls] == list(nameless)
    other = ToolCall(id="2", name="c")
    step = Step(turn=0, index=0, number=0, message=message("assistant", "", other, LOOK), responses=(SHIPPED,))
    assert step.response_to(other) is None  # that response answers another call
    assert step.response_to(LOOK) == SHIPPED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"error": "timeout"}, "failed call"),
        ({"prompt_ids": None}, "no token ids"),
        ({"completion_ids": ()}, "empty completion"),
        ({"logprobs": None}, "no logprobs"),
        ({"logprobs": (-0.5, -0.5)}, "no logprobs"),
        ({"sampling": {}}, "unknown temperature"),
        ({"sampling": {"temperature": 0}}, "temperature 0"),
        ({"sampling": {"temperature": 0.7, "logprobs": "processed"}}, None),
        ({"sampling": {"temperature": 0.7}}, "logprobs are not those of the sampling distribution"),
        (
            {"sampling": {"temperature": 1, "top_p": 0.9, "min_p": 0.1}},
            "logprobs are not those of the sampling distribution: top_p, min_p",
        ),
        ({"sampling": {"temperature": 1, "top_p": 0.9, "top_k": 5, "logprobs": "processed"}}, None),
        ({"sampling": {"temperature": 0.7, "logprobs": "scaled"}}, None),
        (
            {"sampling": {"temperature": 1, "top_k": 5, "logprobs": "scaled"}},
            "logprobs are not those of the sampling distribution: top_k",
        ),
        ({"sampling": {"temperature": 1, "top_p": 1.0, "logprobs": "unknown"}}, None),
        (
            {"sampling": {"temperature": 0.7, "logprobs": "unknown"}},
            "unknown whether logprobs are those of the sampling distribution: temperature",
        ),
        (
            {"sampling": {"temperature": 1, "top_p": 0.9, "logprobs": "unknown"}},
            "unknown whether logprobs are those of the sampling distribution: top_p",
        ),
        ({"sampling": {"temperature": 1, "grammar": "x"}}, "not plain sampling: grammar"),
        (
            {"sampling": {"temperature": 1, "presence_penalty": 0.5, "bias": {"7": 3}, "logprobs": "processed"}},
            "not plain sampling: presence_penalty, bias",
        ),
        (
            {"sampling": {"temperature": 1, "repetition_penalty": 1.1, "n": 2, "best_of": 3, "tool_choice": "any"}},
            "not plain sampling: repetition_penalty, tool_choice, n, best_of",
        ),
        (
            {"sampling": {"temperature": 1, "presence_penalty": 0.0, "repetition_penalty": 1.0, "top_k": -1, "n": 1}},
            None,
        ),
        ({"sampling": {"temperature": 1, "untrainable": "a stop string cut the text"}}, "a stop string cut the text"),
        ({"usage": {"input_tokens": 2, "output_tokens": 1, "cache_read": 1}}, None),
        ({"usage": {"output_tokens": 2}}, "token ids disagree with usage"),
        ({"usage": {"input_tokens": 1}}, "token ids disagree with usage"),
    ],
)
def test_why_a_call_cannot_be_trained_on(changes: dict[str, Any], reason: str | None) -> None:
    assert replace(GOOD, **changes).untrainable == reason


def test_the_policy_is_the_one_version_that_wrote_the_dialogue() -> None:
    calls = (replace(GOOD, model_version="v1", message=1), replace(GOOD, model_version="judge"))
    assert Trace.of(Run(id="a", calls=calls)).policy == "v1"
    assert Trace.of(Run(id="a", calls=(*calls, replace(GOOD, model_version="v2", message=2)))).policy is None


@pytest.mark.parametrize("data", [None, {}, {"id": 3}, {"id": "t", "runs": [{"name": "x"}]}, {"id": "t", "runs": [3]}])
def test_a_malformed_trace_is_refused(data: Any) -> None:
    with pytest.raises(TraceError, match="expected the object that"):
        Trace.from_json(data)


def test_what_a_later_run_was_shown_beyond_the_trace_is_part_of_it() -> None:
    hi, hello, wait = (
        message("user", "Hi"),
        message("assistant", "Hello."),
        message("assistant", "I am a person: wait."),
    )
    asked = message("assistant", "", LOOK)
    first = Run(id="a", messages=(hi, hello), calls=(replace(GOOD, message=1),))
    last = message("user", "Where is 7?")
    again = Run(
        id="b",
        history=(hi, hello, wait),
        messages=(last, asked, answers(SHIPPED), message("assistant", "Shipped.")),
        calls=(replace(GOOD, span_id="t", message=1),),
    )
    whole = Trace(id="t", runs=(first, again))
    grown = Trace.of(first).with_run(again)
    read = Trace.of(first)
    assert len(read.turns) == 1
    for trace in (whole, grown, read.with_run(again)):
        assert trace.messages == (hi, hello, wait, *again.messages)
        assert [[step.message.text for step in turn.steps] for turn in trace.turns] == [
            ["Hello.", "I am a person: wait."],
            ["", "Shipped."],
        ]
        assert trace.unwritten == {1}
        assert trace.shown_before == ((), (wait,))
        assert [step.call is not None for step in trace.steps] == [True, False, True, False]
    assert read.messages == (hi, hello)


@pytest.mark.parametrize(
    "history",
    [
        ("Hi", "Hello."),
        ("Hi", "Hello.", "Hi", "Hello."),
        ("Hi", "Hello.", "A reminder"),
        ("Another", "beginning", "and", "more"),
        ("Hello.",),
    ],
)
def test_a_history_that_holds_no_more_changes_nothing(history: tuple[str, ...]) -> None:
    said = tuple(message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(history))
    first = Run(id="a", messages=(message("user", "Hi"), message("assistant", "Hello.")))
    again = Run(id="b", history=said, messages=(message("user", "Thanks"), message("assistant", "Bye.")))
    trace = Trace(id="t", runs=(first, again))
    assert trace.messages == first.messages + again.messages
    assert trace.unwritten == frozenset()
