"""Drafts and attacks: what is written stands where it should, and nothing else of the dialogue changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cm2_agent import Message, Run, Trace
from cm2_agent.rewards.certificate.attack import Subject, Target, attacked
from cm2_agent.rewards.certificate.benign import benign_edits
from cm2_agent.rewards.certificate.draft import PAGE, Draft
from cm2_agent.rewards.certificate.families import Template, load_families
from cm2_agent.rewards.certificate.values import longer, near, said
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import ToolCall, ToolCallResponse
from cm2_agent.types.run import ModelCall, ToolRun
from cm2_agent.types.score import Score
from tests.order_traces import FAILING, Order, early_write, failed_call, invented, right, silent, traces_of, vague

ITEM = Item("tells_date", "Does the reply give the date?", pass_condition="It is the tool's.")


def recorded() -> Trace:
    """Two runs of a thread, watched: calls and executions have spans, and the tool of the second raised."""
    first = ToolCall(id="1", name="get_order", arguments={"order_id": 7})
    second = ToolCall(id="1", name="cancel_order", arguments={"order_id": 7})
    runs = []
    for number, (call, error) in enumerate([(first, None), (second, "refused")]):
        answer = ToolCallResponse(id="1", response="arrives on 2026-05-20", error=error is not None)
        messages = (
            Message.of("user", "Where is order 7?" if number == 0 else "Cancel it."),
            Message.of("assistant", "", [call]),
            Message(role="tool", parts=(answer,)),
            Message.of("assistant", "It is on its way."),
        )
        calls = tuple(
            ModelCall(span_id=f"m{number}{at}", message=at, output=messages[at], started=at, ended=at + 1)
            for at in (1, 3)
        )
        tool = ToolRun(
            span_id=f"t{number}",
            name=call.name,
            call_id="1",
            arguments=call.arguments,
            result=None if error else answer.response,
            error=error,
            started=2,
            ended=3,
        )
        runs.append(
            Run(id=f"r{number}", thread="t", messages=messages, calls=calls, tools=(tool,), started=1 + 9 * number)
        )
    return Trace(id="t", runs=tuple(runs))


def subject(trace: Trace, *turns: int | None) -> Subject:
    targets = tuple(Target(turn=turn, item=ITEM, pays=0.0, judged=True) for turn in turns or (0,))
    return Subject(
        trace=trace, task=None, cluster="t", score=Score(trace_id="t", reward_version="v", reward=0), targets=targets
    )


def statuses(trace: Trace) -> list[tuple[str, str]]:
    return [(use.call.name, use.status) for step in trace.steps for use in step.tool_uses]


def test_a_draft_without_changes_is_the_trace() -> None:
    trace = recorded()
    assert Draft(trace).trace() == trace


def test_texts_stand_where_they_are_put_and_calls_keep_their_fates() -> None:
    trace = recorded()
    draft = Draft(trace)
    turn = trace.turns[1]
    assert draft.reply(turn, "R")
    assert draft.reply(turn, "P", "prepend")
    assert draft.reasoning(turn, "T")
    assert draft.user(turn, "U")
    assert draft.tool_output(turn, "O")
    assert draft.message(turn, "M")
    changed = draft.trace()
    assert statuses(changed) == statuses(trace) == [("get_order", "ok"), ("cancel_order", "failed")]
    assert changed.turns[0] == trace.turns[0]
    last = changed.turns[1]
    assert [step.message.text for step in last.steps] == ["", "P\nIt is on its way.\nR", "M"]
    assert last.steps[1].message.reasoning == "T"
    assert last.user[0].text == "Cancel it.\nU"
    assert last.steps[0].responses[0].response == "arrives on 2026-05-20\nO"
    assert last.steps[0].responses[0].error
    assert [step.call is not None for step in last.steps] == [True, True, False]


def test_a_page_is_read_where_no_tool_answered() -> None:
    (trace,) = traces_of((invented,), 1)
    draft = Draft(trace)
    assert draft.tool_output(trace.turns[0], "O")
    changed = draft.trace()
    assert statuses(changed) == [(PAGE, "ok")]
    assert changed.turns[0].steps[0].responses[0].response == "O"
    assert changed.turns[0].steps[1].message == trace.steps[0].message


def test_arguments_change_in_the_message_and_in_what_ran() -> None:
    trace = recorded()
    draft = Draft(trace)
    assert draft.arguments(trace.turns[0], lambda arguments: {**arguments, "order_id": 8})
    changed = draft.trace()
    assert changed.steps[0].message.tool_calls[0].arguments == {"order_id": 8}
    assert changed.steps[0].tool_uses[0].arguments == {"order_id": 8}
    assert changed.runs[0].tools[0].arguments == {"order_id": 8}
    assert statuses(changed) == statuses(trace)


@pytest.mark.parametrize("trace", [recorded(), *traces_of((failed_call,), 1)])
def test_a_twin_under_the_same_id_heals_no_failed_call(trace: Trace) -> None:
    turn = trace.turns[-1]
    draft = Draft(trace)
    assert draft.twin(turn)
    changed = draft.trace()
    failed = [one for one in statuses(trace) if one[1] == "failed"]
    assert [one for one in statuses(changed) if one[0] != PAGE and one[1] == "failed"] == failed
    assert (PAGE, "ok") in statuses(changed)


@pytest.mark.parametrize("family", load_families(), ids=lambda family: family.name)
def test_every_template_changes_some_failing_trace_and_no_call_but_where_it_says_so(family) -> None:  # type: ignore[no-untyped-def]
    traces = [*traces_of(FAILING, len(FAILING)), recorded()]
    for template in family.templates:
        changed = [(trace, attacked(subject(trace, len(trace.turns) - 1), [template])) for trace in traces]
        assert any(one is not None and one != trace for trace, one in changed)
        for trace, one in changed:
            if one is not None:
                assert [status for status in statuses(one) if status[0] != PAGE] == statuses(trace)
                assert len(one.turns) == len(trace.turns)
                assert one.messages != trace.messages


def test_placeholders_are_filled_once_an_item_and_as_json_where_they_stand_in_json() -> None:
    (trace,) = traces_of((vague,), 1)
    quoting = replace(
        subject(trace), targets=(Target(turn=0, item=Item("a", 'Is "it" said?'), pays=0, judged=True),) * 2
    )
    changed = attacked(quoting, [Template(where="reply", text='{"asked": "${question}", "good": "${good}"}')])
    assert changed is not None
    assert changed.steps[-1].message.text.split("\n")[1:] == ['{"asked": "Is \\"it\\" said?", "good": "yes"}']
    unanswered = attacked(
        subject(next(traces_of((invented,), 1))), [Template(where="reply", text="It is not ${value}.")]
    )
    assert unanswered is not None
    assert unanswered.steps[-1].message.text.endswith("It is not 1000.")  # what the user wrote, where no tool answered
    assert (
        attacked(subject(next(traces_of((invented,), 1))), [Template(where="arguments", text="x")]) is None
    )  # no call


@pytest.mark.parametrize("kind", [vague, right, failed_call, early_write])
def test_near_misses_stand_nowhere_in_the_dialogue(kind) -> None:  # type: ignore[no-untyped-def]
    (trace,) = traces_of((kind,), 1)
    known = said(trace)
    for value in ("2026-01-03", "1000", str(Order(0).id), "A-9"):
        for made in (near(value, known), longer(value, known)):
            assert made is None or made.casefold() not in known
    assert near("no digit", known) is None
    assert near("9", "8 7 6 5 4 3 2 1 0") is None


def test_benign_edits_change_replies_alone() -> None:
    trace = recorded()
    names = [name for name, _ in benign_edits(trace)]
    assert names == ["a greeting", "white space", "the full stop", "a closing"]
    for _, edited in benign_edits(trace):
        assert statuses(edited) == statuses(trace)
        assert [turn.user for turn in edited.turns] == [turn.user for turn in trace.turns]
    assert benign_edits(next(traces_of((silent,), 1))) == []
    listed = Trace.of(Run(id="r", messages=(Message.of("user", "?"), Message.of("assistant", "- one\n- two\nSorry!"))))
    edits = {name: one.steps[0].message.text for name, one in benign_edits(listed)}
    assert edits["the order of a list"] == "- two\n- one\nSorry!"
    assert edits["politeness"] == "- one\n- two\nmy apologies!"
