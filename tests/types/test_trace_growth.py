"""Traces that grow run by run: their turns, texts and places are those of a trace made at once, and what a run does not
touch is not made again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.dialogue_words import leaves, parsed
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.tokens import fold, tells
from cm2_agent.types.tool_errors import is_error
from cm2_agent.types.tool_use import AskedCall, Executions, as_it_ran
from cm2_agent.types.trace import Step, Trace, Turn
from cm2_agent.types.view import View, as_text, occurs

WORDS = st.sampled_from(["7", "order 7", "A-9", "Straße", "line\nbreak", "break", "", "x7", "Order", "a a"])
IDS = st.sampled_from(["1", "2", "look", None])
TOOLS = st.sampled_from(["look", "pay"])


def asks(calls: Sequence[tuple[Any, str, Any]], text: str) -> Message:
    return Message.of("assistant", text, [ToolCall(id=i, name=n, arguments={"v": a}) for i, n, a in calls])


messages = st.one_of(
    st.builds(lambda text: Message.of("user", text), WORDS),
    st.builds(lambda text: Message.of("assistant", text), WORDS),
    st.builds(asks, st.lists(st.tuples(IDS, TOOLS, WORDS), min_size=1, max_size=2), WORDS),
    st.builds(
        lambda i, answer, error: Message(role="tool", parts=(ToolCallResponse(id=i, response=answer, error=error),)),
        IDS,
        WORDS | st.integers(0, 9),
        st.booleans(),
    ),
)
tools = st.builds(
    lambda i, name, value, started, error: ToolRun(
        span_id="s", name=name, call_id=i, arguments={"v": value}, result="ok", error=error, started=started
    ),
    IDS,
    TOOLS,
    WORDS,
    st.sampled_from([5, 50]),
    st.sampled_from([None, "down"]),
)


@st.composite
def all_runs(draw: st.DrawFn) -> list[Run]:
    made = []
    for number in range(draw(st.integers(1, 5))):
        own = tuple(draw(st.lists(messages, max_size=6)))
        answers = [place for place, one in enumerate(own) if one.role == "assistant"]
        calls = tuple(
            ModelCall(span_id=str(place), message=place, ended=draw(st.sampled_from([0, 10, 60])))
            for place in answers
            if draw(st.booleans())
        )
        history = tuple(draw(st.lists(messages, max_size=4))) if draw(st.booleans()) else ()
        ran = tuple(draw(st.lists(tools, max_size=3)))
        started = draw(st.sampled_from([0, 1]))
        made.append(
            Run(id=str(number), messages=own, history=history, calls=calls, tools=ran, started=started, thread="t")
        )
    return made


def grown(runs: Sequence[Run]) -> Trace:
    trace = Trace(id="t", runs=())
    for run in runs:
        trace = trace.with_run(run)
        assert trace.turns is not None
        assert trace.words is not None
    return trace


def reference_turns(runs: Sequence[Run]) -> tuple[Turn, ...]:
    """The definition, written down without a thought for its cost."""
    turns: list[Turn] = []
    users: list[Message] = []
    steps: list[Step] = []
    number, answered = 0, False
    dialogue = [(message, None, -1) for message in (runs[0].history if runs else ())] + [
        (message, {call.message: call for call in run.calls}.get(at), place)
        for place, run in enumerate(runs)
        for at, message in enumerate(run.messages)
    ]
    of_run: dict[int, int] = {}
    for message, call, place in dialogue:
        if message.role == "user":
            if answered and steps:
                turns.append(Turn(index=len(turns), user=tuple(users), steps=tuple(steps)))
                users, steps = [], []
            answered = False
            users.append(message)
        elif message.role == "assistant":
            answered = bool(users)
            of_run[number] = place
            steps.append(Step(turn=len(turns), index=len(steps), number=number, message=message, call=call))
            number += 1
        elif steps:
            steps[-1] = replace(steps[-1], responses=(*steps[-1].responses, *message.responses))
    if steps:
        turns.append(Turn(index=len(turns), user=tuple(users), steps=tuple(steps)))
    executions, asked, now = Executions(), {}, 0
    for place, run in enumerate(runs):
        for step in (one for turn in turns for one in turn.steps):
            if of_run[step.number] == place or (place == 0 and of_run[step.number] == -1):
                now = max(now, step.call.ended if step.call is not None else 0)
                asked[step.number] = [AskedCall(use=use, step=step.number, at=now) for use in step.tool_uses]
                for one in asked[step.number]:
                    executions.ask(one)
        for tool in run.tools:
            executions.execute(tool)
    captured = {step for step, place in of_run.items() if place >= 0 and runs[place].started}
    own_code = {
        one.use.call.name for step in captured for one in asked[step] if one.run is None and one.use.status == "ok"
    }
    return tuple(
        replace(
            turn,
            steps=tuple(
                replace(
                    step,
                    **as_ran(step, [one.run for one in asked[step.number]]),
                    runs=tuple(one.run for one in asked[step.number]),
                    recorded=tuple(
                        step.number in captured and one.use.call.name not in own_code for one in asked[step.number]
                    ),
                )
                for step in turn.steps
            ),
        )
        for turn in turns
    )


def as_ran(step: Step, runs: Sequence[ToolRun | None]) -> dict[str, Any]:
    """The step's message with the arguments that ran; the call that wrote it says that it was edited."""
    message = as_it_ran(step.message, runs, () if step.call is None else step.call.tools)
    if message is step.message or step.call is None:
        return {"message": message}
    return {"message": message, "call": replace(step.call, changed=step.call.changed or "edited")}


@given(all_runs())
def test_a_trace_that_grew_is_the_trace_made_at_once(runs: list[Run]) -> None:
    once = Trace(id="t", runs=tuple(runs))
    slowly = grown(runs)
    assert slowly == once
    assert slowly.turns == once.turns == reference_turns(runs)
    assert slowly.run_ends == once.run_ends
    assert (slowly.steps, slowly.messages, slowly.attributes) == (once.steps, once.messages, once.attributes)
    for seen, end in enumerate(once.run_ends, 1):
        before = reference_turns(runs[:seen])
        assert (end.turn, end.steps) == (len(before) - 1, len(before[-1].steps) if before else 0)


@given(all_runs())
def test_what_a_run_does_not_touch_is_not_made_again(runs: list[Run]) -> None:
    trace = Trace(id="t", runs=())
    for run in runs:
        before = trace.turns
        trace = trace.with_run(run)
        same = [old is new for old, new in zip(before, trace.turns, strict=False)]
        assert same == sorted(same, reverse=True), "a turn is only the same where those before it are"
        for old, new, is_same in zip(before, trace.turns, same, strict=False):
            assert not is_same or old == new


@given(all_runs(), WORDS | st.integers(0, 9))
def test_places_of_values_are_those_of_a_plain_search(runs: list[Run], value: Any) -> None:
    trace = Trace(id="t", runs=())
    telling = tells(fold(as_text(value)))
    for seen, run in enumerate(runs, 1):
        trace = trace.with_run(run)
        for one in (trace, Trace(id="t", runs=tuple(runs[:seen]))):
            for turn in (*range(len(one.turns)), None):
                for view in (View(trace=one, turn=turn, seen=s) for s in range(len(one.scope(turn).steps) + 1)):
                    so_far = one.turns if turn is None else one.turns[: turn + 1]
                    text = "\n".join(message.text for own in so_far for message in own.user)
                    assert view.user_text == text
                    assert view.said_by_user(value) == (telling and occurs(value, text))
                    earlier = [step for own in so_far[:-1] for step in own.steps] if turn is not None else []
                    assert view.dialogue_steps == (*earlier, *view.steps)
                    for before in (None, 0, view.seen, view.seen + 1):
                        steps = view.dialogue_steps if before is None else (*earlier, *view.steps[:before])
                        answers = [r for step in steps for r in step.responses if not is_error(r)]
                        told = any(occurs(value, as_text(leaf)) for r in answers for leaf in leaves(parsed(r.response)))
                        assert view.told_by_tool(value, before) == (telling and told)


def say(number: int, *, tool: str = "") -> Run:
    calls = [ToolCall(id="1", name="look", arguments={})] if tool else []
    answer = (Message(role="tool", parts=(ToolCallResponse(id="1", response=tool),)),) if tool else ()
    own = (Message.of("user", f"Question {number}"), Message.of("assistant", "" if tool else "Yes", calls), *answer)
    return Run(id=str(number), thread="t", messages=own)


def test_turns_that_are_over_stay_the_same_objects() -> None:
    trace = grown([say(0), say(1)])
    more = trace.with_run(say(2))
    assert all(old is new for old, new in zip(trace.turns, more.turns, strict=False))
    assert len(more.turns) == 3


def test_one_trace_goes_on_in_two_ways() -> None:
    trace = grown([say(0, tool="A-1"), say(1)])
    one, two = trace.with_run(say(2, tool="B-2")), trace.with_run(say(3, tool="C-3"))
    twin = copy.copy(trace).with_run(say(4, tool="D-4"))
    for made, own in ((one, "B-2"), (two, "C-3"), (twin, "D-4")):
        assert made.turns == Trace(id="t", runs=made.runs).turns
        found = [value for value in ("A-1", "B-2", "C-3", "D-4") if View.of(made).told_by_tool(value)]
        assert found == ["A-1", own]
    assert [value for value in ("A-1", "B-2") if View.of(trace).told_by_tool(value)] == ["A-1"]


def test_a_run_that_is_replaced_is_cut_anew() -> None:
    trace = grown([say(0), say(1)])
    again = trace.with_run(replace(say(1, tool="A-1")))
    assert again.turns == Trace(id="t", runs=again.runs).turns
    assert View.of(again).told_by_tool("A-1")


@given(st.integers(1, 12), st.integers(0, 400))
def test_many_lookups_find_what_few_find(texts: int, lookups: int) -> None:
    """After many lookups the words are indexed: the answers stay the same."""
    runs = [say(number, tool=f"ref-{number} of {number % 3}, x{number}") for number in range(texts)]
    trace = grown(runs)
    values = [f"ref-{number % 15}" for number in range(lookups)] + ["of 1", "x2", "x9", "f-3", "of 2, x2"]
    for value in values:
        first = next((n for n in range(texts) if occurs(value, f"ref-{n} of {n % 3}, x{n}")), None)
        assert trace.words.tool_step(value) == first
