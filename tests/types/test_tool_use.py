"""Tool calls with what came of them: which answer and which execution belong to a call, its status, what ran."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import TraceError
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import UNFINISHED, ModelCall, Run, ToolRun
from cm2_agent.types.tool_use import pair_answers
from cm2_agent.types.trace import Step, Trace
from cm2_agent.types.view import View

NAMES = st.sampled_from(["a", "b", "cancel", "", None])


def asks(*calls: ToolCall) -> Message:
    return Message.of("assistant", "", calls)


def answer(*responses: ToolCallResponse) -> Message:
    return Message(role="tool", parts=responses)


def cancel(order: int, identity: str | None = "cancel") -> ToolCall:
    return ToolCall(id=identity, name="cancel", arguments={"order_id": order})


def said(text: str, identity: str | None = "cancel", error: bool = False) -> ToolCallResponse:
    return ToolCallResponse(id=identity, response=text, error=error)


def ran(order: Any, identity: str | None = "cancel", **more: Any) -> ToolRun:
    result = {} if "error" in more else {"result": f"cancelled {order}"}
    arguments = order if isinstance(order, dict) else {"order_id": order}
    return ToolRun(span_id=f"s{order}", name="cancel", call_id=identity, arguments=arguments, **{**result, **more})


def trace(*messages: Message, tools: tuple[ToolRun, ...] = (), **more: Any) -> Trace:
    return Trace.of(Run(id="r", messages=(Message.of("user", "Cancel 1 and 2"), *messages), tools=tools, **more))


@given(st.lists(NAMES, max_size=6))
def test_answers_in_the_order_of_the_calls_belong_to_them_whatever_the_ids(ids: list[str | None]) -> None:
    assert pair_answers(ids, ids) == tuple(range(len(ids)))
    assert pair_answers(ids, [None] * len(ids)) == tuple(range(len(ids)))
    assert pair_answers([None] * len(ids), ids) == tuple(range(len(ids)))


@given(st.data(), st.lists(NAMES, max_size=6))
def test_answers_in_another_order_are_found_by_their_ids(data: st.DataObject, ids: list[str | None]) -> None:
    """Those of one id stay in their order, as do those without one."""
    order = data.draw(st.permutations(range(len(ids))))
    found = pair_answers(ids, [ids[place] for place in order])
    assert sorted(place for place in found if place is not None) == list(range(len(ids)))
    for name in {identity or None for identity in ids}:
        own = [place for place, identity in enumerate(ids) if (identity or None) == name]
        places = [at for at, place in enumerate(order) if (ids[place] or None) == name]
        assert [found[place] for place in own] == places


@given(st.lists(NAMES, max_size=6), st.lists(NAMES, max_size=6))
def test_an_answer_belongs_to_one_call_of_its_id(asked: list[str | None], answered: list[str | None]) -> None:
    found = pair_answers(asked, answered)
    taken = [place for place in found if place is not None]
    assert len(set(taken)) == len(taken)
    assert all(
        not asked[at] or not answered[place] or asked[at] == answered[place]
        for at, place in enumerate(found)
        if place is not None
    )


@given(st.lists(NAMES, min_size=1, max_size=5), st.lists(NAMES, min_size=1, max_size=5))
def test_executions_follow_the_order_of_the_calls_whatever_the_ids(
    one: list[str | None], two: list[str | None]
) -> None:
    """Over two steps whose ids may repeat: what ran, and what it answered, stay with the call."""
    ids = [one, two]
    messages, tools = [], []
    for number, own in enumerate(ids):
        orders = [10 * number + place for place in range(len(own))]
        messages.append(asks(*(cancel(order, identity) for order, identity in zip(orders, own, strict=True))))
        messages.append(answer(*(said(f"cancelled {o}", identity) for o, identity in zip(orders, own, strict=True))))
        tools += [ran(order, identity) for order, identity in zip(orders, own, strict=True)]
    for step in trace(*messages, tools=tuple(tools)).steps:
        for use in step.tool_uses:
            assert use.call.arguments is not None
            order = use.call.arguments["order_id"]
            assert use.response is not None
            assert use.response.response == f"cancelled {order}"
            assert use.run is not None
            assert use.run.arguments == {"order_id": order}


def test_two_calls_of_one_id_have_an_answer_each() -> None:
    first, second = cancel(1), cancel(2)
    found = trace(
        asks(first, second),
        answer(said("cancelled 1")),
        answer(said("2 was shipped", error=True)),
    )
    step = found.steps[0]
    assert [step.response_to(call) for call in (first, second)] == list(step.responses)
    assert [step.status_of(call) for call in (first, second)] == ["ok", "failed"]
    view = View.of(found)
    assert [call.result for call in view.calls("cancel", {"order_id": 2})] == ["2 was shipped"]
    assert [call.arguments for call in view.calls(status="failed")] == [{"order_id": 2}]
    with pytest.raises(TraceError, match="made no call"):
        step.status_of(cancel(3))


def test_two_equal_calls_are_told_apart() -> None:
    one, two = cancel(1), cancel(1)
    step = trace(asks(one, two), answer(said("cancelled"), said("was cancelled", error=True))).steps[0]
    assert [step.status_of(call) for call in (one, two)] == ["ok", "failed"]


RAW = ToolCall(id="1", name="cancel", arguments='{"order_id": ')
BROKEN = ToolCall(id="1", name="cancel", arguments={}, extra={"error": "no JSON"})
OFFERED = ModelCall(span_id="c", tools=(ToolSpec(name="cancel"),), message=1)
UNKNOWN = ToolCall(id="1", name="cancel_all", arguments={})
REFUSED = said("refused by a person", "1", error=True)


@pytest.mark.parametrize(
    ("call", "more", "status"),
    [
        (RAW, {}, "invalid"),
        (BROKEN, {}, "invalid"),
        (replace(RAW, arguments=[1]), {}, "invalid"),
        (replace(RAW, name="", arguments={}), {}, "invalid"),
        (RAW, {"response": said("not JSON", "1", error=True)}, "invalid"),
        (RAW, {"tool": ran({"order_id": 1}, "1")}, "ok"),  # somebody mended it
        (UNKNOWN, {"response": said("no such tool", "1", error=True), "calls": (OFFERED,)}, "invalid"),
        (UNKNOWN, {"calls": (OFFERED,)}, "invalid"),
        (UNKNOWN, {}, "not_run"),
        (replace(RAW, extra={"custom": True}), {"response": said("ok", "1")}, "ok"),
        (replace(RAW, arguments=None), {"response": said("ok", "1")}, "ok"),
        (cancel(1, "1"), {}, "not_run"),
        (cancel(1, "1"), {"tool": ran(1, "1", result=None)}, "not_run"),  # interrupted
        (cancel(1, "1"), {"tool": ran(1, "1", error=UNFINISHED)}, "not_run"),
        (cancel(1, "1"), {"tool": ran(1, "1", error="ValueError: shipped")}, "failed"),  # it ended the run
        (cancel(1, "1"), {"response": said("shipped", "1", error=True)}, "failed"),
        (cancel(1, "1"), {"response": said("sorry", "1"), "tool": ran(1, "1", error="ValueError")}, "failed"),
        (cancel(1, "1"), {"response": said("fine", "1")}, "ok"),
        (cancel(1, "1"), {"tool": ran(1, "1")}, "ok"),  # the run ended before the answer was shown
        (cancel(1, "1"), {"response": REFUSED}, "failed"),
        (cancel(1, "1"), {"response": REFUSED, "started": 5}, "not_run"),  # captured, and nothing was executed
    ],
)
def test_every_call_has_a_status(call: ToolCall, more: dict[str, Any], status: str) -> None:
    messages = [asks(call), *([answer(more["response"])] if "response" in more else [])]
    tools = (more["tool"],) if "tool" in more else ()
    found = trace(*messages, tools=tools, calls=more.get("calls", ()), started=more.get("started", 0))
    assert found.steps[0].tool_uses[0].status == status
    assert [one.status for one in View.of(found).all_calls] == [status]


def test_errors_of_tools_that_nobody_records_are_failures() -> None:
    """A tool that the application's own node runs answers without an execution, so none of its calls has one."""
    good, bad = cancel(1, "1"), cancel(2, "2")
    found = trace(asks(good, bad), answer(said("done", "1"), said("shipped", "2", error=True)), started=5)
    assert [found.steps[0].status_of(call) for call in (good, bad)] == ["ok", "failed"]


def test_a_step_alone_knows_what_its_messages_say() -> None:
    step = Step(turn=0, index=0, number=0, message=asks(cancel(1), RAW), responses=(said("cancelled"),))
    assert [use.status for use in step.tool_uses] == ["ok", "invalid"]


@pytest.mark.parametrize(
    ("given", "tool", "arguments"),
    [
        ({"order_id": 1}, {"order_id": 2}, {"order_id": 2}),  # edited before it ran
        ({"order_id": 1}, {"order_id": 1.0}, {"order_id": 1}),
        ({"order_id": 1}, {"order_id": 1, "user": "ada"}, {"order_id": 1}),  # the application's own
        ({"order_id": 1}, {"order_id": 1, "reason": "late"}, {"order_id": 1, "reason": "late"}),  # added by the editor
        ({"order_id": 1}, {"order_id": 1, "limit": 5}, {"order_id": 1}),  # a default, spelled out
        ({"order_id": 1, "reason": "late"}, {"order_id": 1}, {"order_id": 1}),  # taken away by the editor
        ({"order_id": 1}, {"input": "1"}, {"order_id": 1}),  # another form of the same
        (None, {}, None),
    ],
)
def test_what_ran_is_what_counts(given: Any, tool: dict[str, Any], arguments: Any) -> None:
    schema = {"properties": {"order_id": {}, "reason": {}, "limit": {"default": 5}}}
    offered = ModelCall(span_id="c", tools=(ToolSpec(name="cancel", parameters=schema),), message=1)
    call = replace(cancel(1), arguments=given)
    found = trace(asks(call), answer(said("ok")), tools=(ran(tool),), calls=(offered,))
    (seen,) = View.of(found).all_calls
    assert seen.arguments == arguments
    assert found.steps[0].message.tool_calls[0].arguments == arguments
    assert found.runs[0].messages[1].tool_calls[0].arguments == given
    (step,) = found.steps
    assert step.call is not None
    assert step.call.untrainable == ("no token ids" if arguments == given else "edited after it was sampled")
    assert found.messages == (*found.runs[0].messages[:1], step.message, *found.runs[0].messages[2:])


def test_another_tool_that_a_person_chose_instead() -> None:
    """The person's decision comes with a later run than the model's call."""
    asked = Run(id="a", thread="t", messages=(Message.of("user", "Cancel 1"), asks(cancel(1, "1"))), started=1)
    instead = ToolRun(span_id="s", name="refund", call_id="1", arguments={"all": True}, result="paid", started=5)
    done = Run(id="b", thread="t", messages=(answer(said("paid", "1")),), tools=(instead,), started=4)
    (step,) = Trace(id="t", runs=(asked, done)).steps
    assert [(use.call.name, use.arguments, use.status) for use in step.tool_uses] == [("refund", {"all": True}, "ok")]


def test_a_call_that_was_tried_again_is_its_last_try() -> None:
    twice = (ran(1, error="timeout", started=3), ran(1, started=4))
    later = (ran(2, error="shipped", started=9),)
    first = Run(id="a", thread="t", messages=(Message.of("user", "Cancel 1"), asks(cancel(1))), tools=twice, started=1)
    second = Run(
        id="b",
        thread="t",
        messages=(answer(said("cancelled 1")), Message.of("user", "And 2"), asks(cancel(2))),
        calls=(ModelCall(span_id="c", message=2, ended=8),),
        tools=later,
        started=7,
    )
    found = Trace(id="t", runs=(first, second))
    assert [use.status for step in found.steps for use in step.tool_uses] == ["ok", "failed"]
    assert View.of(found).all_calls[1].error == "shipped"


def test_a_tool_beside_the_dialogue_is_no_call_of_it() -> None:
    """A sub-agent's calls may have the ids of its caller's."""
    inner = ToolRun(span_id="i", name="look_up", call_id="cancel", arguments={"order_id": 9}, error="nothing there")
    found = trace(asks(cancel(1)), answer(said("cancelled 1")), tools=(inner, ran(1)))
    (use,) = found.steps[0].tool_uses
    assert use.status == "ok"
    assert use.run is not None
    assert use.run.name == "cancel"
