"""The stack's arithmetic, its laws, and what it stores."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cm2_agent.errors import ChecklistError, TrainError
from cm2_agent.rewards.components.component import Context, RewardComponent, as_component
from cm2_agent.rewards.components.outcome import outcome
from cm2_agent.rewards.components.penalties import format_penalty, length_penalty, tool_error_penalty
from cm2_agent.rewards.components.principles import principle_items, principles
from cm2_agent.rewards.components.reward_model import preference, sigmoid
from cm2_agent.rewards.components.stack import (
    Stack,
    add,
    gate,
    multiply,
    penalty,
)
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.trainers.advantage import advantages
from cm2_agent.types.messages import Message, Text, ToolCall
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Component, Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.rewards.components.stacking import GOOD, LOOKS, MUTE, constant, half_judged, score, sometimes
from tests.rewards.talk import call, say, trace, turn

DEAD = trace(turn("Where?", call("look")), id="dead", failure="ToolError")


async def test_the_formula() -> None:
    found = await score(
        gate(constant("safe", 0.7), threshold=0.6),
        multiply(constant("polite", 0.5)),
        add(constant("a", 1.0), 3),
        add(constant("b", 0.2), 1),
        penalty(constant("long", 0.5), 0.1),
    )
    assert found.reward == pytest.approx(1 * 0.5 * (3 * 1.0 + 0.2) / 4 - 0.1 * 0.5)
    assert found.components == {"safe": 0.7, "polite": 0.5, "a": 1.0, "b": 0.2, "long": 0.5}
    closed = await score(
        gate(constant("safe", 0.5), threshold=0.6), constant("a", 1.0), penalty(constant("long", 0.5), 0.1)
    )
    assert closed.reward == pytest.approx(-0.05)


async def test_a_gate_alone_is_the_gate() -> None:
    assert (await score(gate(constant("safe", 0.6), threshold=0.6))).reward == 1
    assert (await score(gate(constant("safe", 0.59), threshold=0.6))).reward == 0


async def test_a_checklist_alone_is_that_checklist() -> None:
    stack, scorer = Stack(LOOKS), ChecklistScorer(LOOKS)
    traces = [GOOD, MUTE, trace(turn("Where?", say("There")), id="guess")]
    ours, theirs = [await stack(one) for one in traces], [await scorer(one) for one in traces]
    assert ours == theirs
    # a NULL verdict makes the lower bound differ from the reward: the stack's scores must have the checklist's
    unknown = [await Stack(ChecklistScorer(half_judged(), judge=sometimes))(one) for one in traces]
    plain = [await ChecklistScorer(half_judged(), judge=sometimes)(one) for one in traces]
    assert any(verdict.value is None for one in unknown for verdict in one.verdicts)
    assert advantages(unknown) == advantages(plain)
    # replies: paid 1, 0, 1 of weight .9; kind: paid 1, 0, NULL of weight .1, which is unpaid
    assert [one.scalar for one in advantages(unknown).rollouts] == pytest.approx([1 - 1.9 / 3, -1.9 / 3, 0.9 - 1.9 / 3])


async def test_with_other_rewards_advantages_are_of_the_reward() -> None:
    stack = Stack(LOOKS, outcome("success"))
    scores = [
        await stack(Trace(id=one.id, runs=one.runs, outcomes={"success": value}))
        for one, value in ((GOOD, 1.0), (MUTE, 0.0))
    ]
    assert scores[0].components == {"checklist": 1.0, "success": 1.0}
    assert scores[0].turns == (await ChecklistScorer(LOOKS)(GOOD)).turns
    assert scores[0].checklist == LOOKS.hash
    first, second = 1.0, (0.25 + 0) / 2
    assert [one.scalar for one in advantages(scores).rollouts] == pytest.approx(
        [(first - second) / 2, (second - first) / 2]
    )
    with pytest.raises(TrainError, match="components"):
        advantages(scores, level="return_to_go")


async def test_versions_never_mix_in_a_group() -> None:
    first, second = await score(LOOKS, constant("a", 1.0)), await score(LOOKS, add(constant("a", 1.0), 2), of=MUTE)
    assert first.reward_version != second.reward_version
    with pytest.raises(TrainError, match="score all its traces under one of them"):
        advantages([first, second])


def test_the_version_names_every_component() -> None:
    one = Stack(LOOKS, gate(constant("safe", 1.0), 0.5), penalty(length_penalty(2, 4), 0.1)).version
    for part in (ChecklistScorer(LOOKS).version, "gate>=0.5 safe=1", "penalty*0.1 length=1(2..4 steps)", "stack=1"):
        assert part in one
    assert one == Stack(penalty(length_penalty(2, 4), 0.1), gate(constant("safe", 1.0), 0.5), LOOKS).version
    versions = {
        Stack(LOOKS, gate(constant("safe", 1.0), 0.6)).version,
        Stack(LOOKS, gate(constant("safe", 1.0), 0.5)).version,
        Stack(LOOKS, multiply(constant("safe", 1.0))).version,
        Stack(LOOKS, as_component(constant("safe", 1.0), version="2")).version,
    }
    assert len(versions) == 4


@pytest.mark.parametrize("broken", [None, math.nan, 1.5, -0.1, "1", [], math.inf, RuntimeError("down")])
async def test_what_is_no_number_is_null_and_says_why(broken: Any) -> None:
    def reward(one: Trace) -> Any:
        if isinstance(broken, Exception):
            raise broken
        return broken

    stack = Stack(LOOKS, as_component(reward, version="1"))
    found = await stack(GOOD)
    assert found.reward is None
    assert found.null_reason == "component: reward"
    assert found.components == {"checklist": 1.0, "reward": None}
    (told,) = await stack.components([GOOD])
    assert told["reward"].explanation


async def test_a_dead_dialogue_is_null_and_nobody_is_asked() -> None:
    asked = []

    def reward(one: Trace) -> float:
        asked.append(one.id)
        return 1.0

    for stack in (Stack(reward), Stack(LOOKS, reward)):
        found = await stack(DEAD)
        assert (found.reward, found.null_reason) == (None, "failure: ToolError")
    assert asked == []


async def test_functions_of_every_shape() -> None:
    def yes(one: Trace) -> bool:
        return True

    async def of_task(one: Trace, context: Context) -> Component:
        return Component(name="whatever", version="9", value=0.25, explanation="told" if context.task else None)

    class Model:
        name, version = "model", "m1"

        def __call__(self, one: Trace) -> float:
            return 0.5

    task = Task(id="t", turns=("Where?",))
    found = await score(yes, of_task, Model(), task=task)
    assert found.components == {"yes": 1.0, "of_task": 0.25, "model": 0.5}
    assert "model=m1" in found.reward_version
    with pytest.raises(ChecklistError, match=r"expected \(trace\) or \(trace, context\)"):
        as_component(lambda a, b, c: 1, version="1")
    with pytest.raises(ChecklistError, match="expected a function"):
        as_component(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Stack(), "without rewards"),
        (lambda: Stack(constant("a", 1), constant("a", 1)), "two rewards named a"),
        (lambda: Stack(LOOKS, LOOKS), "two rewards named checklist"),
        (lambda: Stack(add(constant("a", 1), 0)), "expected one above 0"),
        (lambda: gate(constant("a", 1), 0), "threshold is 0"),
        (lambda: penalty(constant("a", 1), -1), "0 or more"),
        (lambda: add(gate(constant("a", 1))), "a gate already"),
    ],
)
def test_what_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(ChecklistError, match=complaint):
        make()


async def test_the_gate_is_the_checklists() -> None:
    stack = Stack(LOOKS, constant("a", 1.0))
    assert stack.gate_hash() == LOOKS.hash
    assert await stack.gate(GOOD, 0) is True
    assert await stack.gate(trace(turn("Where?", say("There"))), 0) is False
    bare = Stack(constant("a", 1.0))
    assert (bare.gate_hash(), await bare.gate(GOOD, 0), bare.checklist) == (None, True, None)


async def test_rewards_of_a_group_need_the_group() -> None:
    stack = Stack(LOOKS, constant("relative", 0.5, of_group=True))
    alone = await stack(GOOD)
    assert (alone.reward, alone.null_reason) == (None, "component: relative")
    good, dead, mute = await stack.score_group([GOOD, DEAD, MUTE])
    assert [good.reward, dead.reward, mute.reward] == [0.75, None, (0.25 + 0.5) / 2]
    short = Stack(RewardComponent(lambda traces: [1.0], name="short", version="1", of_group=True))
    assert [one.reward for one in await short.score_group([GOOD, MUTE])] == [None, None]


async def test_outcomes() -> None:
    won = Trace(id="w", runs=GOOD.runs, outcomes={"success": 1.0, "other": None})
    assert (await outcome("success")(won)).value == 1
    assert (await outcome("other")(won)).value is None
    assert (await outcome("never told")(won)).value is None

    def verifier(task: Task, one: Trace) -> bool:
        return task.outcome == one.id

    async def later(task: Task, one: Trace) -> float:
        return 0.5

    context = Context(task=Task(id="t", outcome="w"))
    assert (await outcome(verifier)(won, context)).value == 1
    assert (await outcome(later)(won, context)).value == 0.5
    assert (await outcome(verifier)(won)).value is None  # no task: the verifier raises
    assert outcome(verifier).version != outcome(later).version


async def test_penalties() -> None:
    raw = Message(role="assistant", parts=(ToolCall(id="c", name="look", arguments="{not json"),))
    beside = Message(role="assistant", parts=(Text(content="Let me look"), ToolCall(id="c", name="look", arguments={})))
    twice = Message(
        role="assistant",
        parts=(ToolCall(id="c", name="look", arguments={}), ToolCall(id="c", name="look", arguments={})),
    )
    one = trace(turn("Where?", [raw], [beside], [twice], [Message(role="assistant")], call("look"), say("There")))
    assert (await format_penalty()(one)).value == pytest.approx(4 / 6)
    assert (await format_penalty(text_beside_calls=False)(one)).value == pytest.approx(3 / 6)
    assert (await format_penalty(tools=frozenset({"book"}))(one)).value == pytest.approx(5 / 6)
    assert (await format_penalty()(Trace(id="t", runs=()))).value is None
    failed = trace(turn("Where?", call("look", error=True), call("look"), call("look"), call("look"), say("There")))
    assert (await tool_error_penalty()(failed)).value == pytest.approx(1 / 4)
    assert (await tool_error_penalty()(trace(turn("Hi", say("Hi"))))).value == 0
    assert [(await length_penalty(low, low + 4)(failed)).value for low in (0, 1, 3, 5, 9)] == [1, 1, 0.5, 0, 0]
    assert (await length_penalty(0, 8, unit="calls")(failed)).value == 0.5
    assert (await length_penalty(0, 10, unit="characters")(failed)).value == 0.5
    assert (await length_penalty(0, 10, unit="tokens")(failed)).value is None
    written = ModelCall(span_id="1", completion_ids=(1, 2, 3), message=1)
    told = ModelCall(span_id="2", usage={"output_tokens": 2}, message=2)
    untold = ModelCall(span_id="3", message=3)
    both = Trace(id="t", runs=(Run(id="t", calls=(written, told)),))
    assert (await length_penalty(0, 10, unit="tokens")(both)).value == 0.5
    assert (
        await length_penalty(0, 10, unit="tokens")(Trace(id="t", runs=(Run(id="t", calls=(written, untold)),)))
    ).value is None
    with pytest.raises(ChecklistError, match="free < most"):
        length_penalty(4, 4)


async def test_a_reward_model() -> None:
    assert (await preference(lambda one: 3.0, version="rm1")(GOOD)).value is None
    assert (await preference(lambda one: 3.0, version="rm1", to_unit=sigmoid)(GOOD)).value == pytest.approx(0.9525741)
    assert (await preference(lambda one: math.nan, version="rm1", to_unit=sigmoid)(GOOD)).value is None
    assert (await preference(lambda one: -math.inf, version="rm1", to_unit=sigmoid)(GOOD)).value == 0
    assert preference(lambda one: 1.0, version="rm1", to_unit=sigmoid).version == "rm1|sigmoid"


async def test_principles_are_judged_as_trace_items() -> None:
    text = (
        "The desk's rules:\n- Never promise a refund.\n- Say what you do not know,\n  and ask.\n3. Never promise a"
        " refund."
    )
    items = principle_items(text)
    assert [item.id for item in items] == [
        "never_promise_a_refund",
        "say_what_you_do_not_know",
        "never_promise_a_refund_3",
    ]
    assert {(item.turn, item.kind) for item in items} == {("trace", "hold")}
    assert items[1].question is not None
    assert items[1].question.endswith("Say what you do not know, and ask.")
    assert len(principle_items("Be kind.\n\nBe brief.")) == 2
    with pytest.raises(ChecklistError, match="without a principle"):
        principle_items(" \n ")

    async def judge(trace: Trace, turn: int | None, items: Any) -> list[Verdict]:
        assert turn is None
        return [Verdict(item=item.id, value=not item.id.startswith("say"), weight=0) for item in items]

    found = await principles("- Be kind.\n- Say so.", judge=judge)(GOOD)
    assert (found.value, found.explanation) == (0.5, "not kept: say_so")

    async def down(trace: Trace, turn: int | None, items: Any) -> list[Verdict]:
        raise TimeoutError

    assert (await principles("- Be kind.", judge=down)(GOOD)).value is None
