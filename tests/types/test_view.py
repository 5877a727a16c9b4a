"""Views: what a check sees of a dialogue, and only up to its step."""

from __future__ import annotations

from typing import Any

import pytest

from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View, occurs


def call(number: int, name: str, **arguments: Any) -> Message:
    return Message.of("assistant", calls=[ToolCall(id=str(number), name=name, arguments=arguments)])


def answer(number: int, response: Any, *, error: bool = False) -> Message:
    return Message(role="tool", parts=(ToolCallResponse(id=str(number), response=response, error=error),))


TRACE = Trace.of(
    Run(
        id="run",
        messages=(
            Message.of("user", "Where is order 7?"),
            call(1, "get_order", id=7),
            answer(1, {"status": "shipped", "carrier": "C-11"}),
            Message.of("assistant", "It is shipped."),
            Message.of("user", "Cancel it, then."),
            call(2, "track", carrier="C-11"),
            answer(2, "no such parcel", error=True),
            call(3, "cancel_order", id=7.0),
            answer(3, "cancelled"),
            Message.of("assistant", "It is cancelled."),
        ),
    )
)


def test_the_scope_is_the_turn_and_nothing_of_it_lies_ahead() -> None:
    view = View(trace=TRACE, turn=1, seen=1)
    assert (view.user, view.replies, view.reply, view.ended) == ("Cancel it, then.", (), "", False)
    assert [one.name for one in view.all_calls] == ["track"]
    assert [one.result for one in view.failed_calls] == ["no such parcel"]
    assert len(view.dialogue_steps) == 3
    assert view.results() == ()
    whole = View.of(TRACE)
    assert (whole.ended, whole.replies) == (True, ("It is shipped.", "It is cancelled."))
    assert whole.results("get_order") == ({"status": "shipped", "carrier": "C-11"},)
    assert whole.user_text == "Where is order 7?\nCancel it, then."


def test_a_call_comes_before_the_reply_or_before_another_call() -> None:
    whole = View.of(TRACE)
    assert whole.called("get_order", before="reply")
    assert not whole.called("cancel_order", before="reply")  # in the dialogue a reply came first
    assert View.of(TRACE, 1).called("cancel_order", before="reply")
    assert not whole.called("track", before="cancel_order")  # it failed
    assert whole.called("track", before="cancel_order", failed=True)
    assert not whole.called("cancel_order", before="track")  # which was tried, though it failed
    assert whole.called("cancel_order", before="refund")  # which was never called
    assert not View(trace=TRACE, turn=1, seen=0).called("track", failed=True)


@pytest.mark.parametrize(
    ("arguments", "name", "called"),
    [
        ({"id": 7}, "cancel_order", True),  # 7 is 7.0
        ({"id": "7"}, "cancel_order", False),
        ({"id": {"from": "user"}}, "get_order", True),
        ({"carrier": {"from": "tool"}}, "track", True),
        ({"carrier": {"from": "user"}}, "track", False),
        ({"id": {"from": "tool"}}, "get_order", False),  # nothing had answered yet
        ({"reason": None}, "get_order", False),
    ],
)
def test_arguments_are_compared_or_traced_to_their_source(arguments: dict[str, Any], name: str, called: bool) -> None:
    assert View.of(TRACE).called(name, with_=arguments, failed=True) is called


def test_a_call_without_named_arguments_matches_no_arguments() -> None:
    odd = Message.of("assistant", calls=[ToolCall(name="f", arguments="7")])
    view = View.of(Trace.of(Run(id="r", messages=(Message.of("user", "x"), odd))))
    assert view.calls("f")
    assert not view.calls("f", with_={"id": 7})
    assert not view.called("f", failed=True)  # it could not be run


@pytest.mark.parametrize(
    ("value", "text", "found"),
    [
        (7, "order 7?", True),
        (7, "order 17", False),
        (7, "order 7a, order 7", True),
        ("ADA", "ada@x.org", True),
        ("", "anything", False),
        ("#7", "order#7", True),
        ({"a": 1}, 'as {"a":1}', True),
    ],
)
def test_a_value_occurs_as_a_whole_word(value: Any, text: str, found: bool) -> None:
    assert occurs(value, text) is found
