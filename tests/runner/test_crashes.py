"""What a policy can bring about to end its dialogue: it is scored as it stands, and never better than an honest
failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from cm2_agent import Checklist, Item, RolloutLimits, SQLStore, run
from cm2_agent.errors import ContextOverflowError
from cm2_agent.graphs import agent, switchable
from cm2_agent.trainers import advantages
from cm2_agent.trainers.advantage import Level
from cm2_agent.types.run_attributes import CRASH, CUT
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.tracing.apps import ScriptedModel

TASK = Task(id="t", turns=("Where is order 7?", "Thanks!"))
RULES = Checklist(
    Item("looks", check={"called": "look", "failed": "allowed"}),
    Item("no_promise", check={"reply_matches": "refund"}, kind="avoid"),
    Item("says", check={"reply_matches": "shipped"}),
    name="rules",
)


def calling(order: str) -> AIMessage:
    return AIMessage(
        "", tool_calls=[{"name": "look", "args": {"order": order}, "id": f"c{order}", "type": "tool_call"}]
    )


LEVELS: tuple[Level, ...] = ("trajectory", "turn", "step", "return_to_go", "evidence")
HONEST = (calling("7"), AIMessage("No idea."), AIMessage("Bye."))


class Desk:
    """Orders; an unknown one crashes the tool, and `away` says how often it is away before it answers."""

    def __init__(self, away: int = 0) -> None:
        self.away, self.calls = away, 0

    def tool(self) -> Any:
        def look(order: str) -> str:
            "Look an order up."
            self.calls += 1
            if self.away:
                self.away -= 1
                raise RuntimeError("the desk has fallen over")
            if order == "slow":
                raise TimeoutError("no answer")
            return {"7": "shipped"}[order]

        return look


async def result(*script: AIMessage, desk: Desk | None = None, **options: Any) -> tuple[Trace, Score]:
    graph = agent(ScriptedModel(script=list(script)), [(desk or Desk()).tool()])
    found = [one async for one in run(graph, [TASK], checklist=RULES, allow_real=["look"], **options)]
    ((trace, score),) = found
    assert score is not None
    return trace, score


async def test_a_crash_that_the_same_call_brings_about_again_cuts_the_turn() -> None:
    desk = Desk()
    trace, score = await result(calling("?"), desk=desk)
    assert desk.calls == 2, "the call was made once more"
    assert trace.attributes[CUT] == CRASH
    assert trace.failure is not None
    assert "KeyError" in trace.failure.message, "what happened is on record"
    first, second = score.turns
    assert [(one.item, one.value) for one in first.verdicts] == [
        ("looks", True),
        ("no_promise", False),
        ("says", False),
    ]
    assert [(one.value, one.reason) for one in second.verdicts] == [(False, "failure")] * 3
    assert (score.null_reason, score.pending) == (None, False)
    assert score.reward == score.lower == score.upper == pytest.approx(1 / 6)


async def test_a_crash_that_does_not_come_again_is_pending() -> None:
    desk = Desk(away=1)
    trace, score = await result(calling("7"), desk=desk)
    assert desk.calls == 2
    assert (score.null_reason, score.pending, trace.attributes.get(CUT)) == ("failure: ToolError", True, None)


async def test_what_a_network_brings_about_is_not_called_again() -> None:
    desk = Desk()
    _, score = await result(calling("slow"), desk=desk)
    assert desk.calls == 1
    assert score.pending


async def test_a_switchable_function_is_called_again_too() -> None:
    calls = []

    @switchable
    def look(order: str) -> str:
        "Look an order up."
        calls.append(order)
        return {"7": "shipped"}[order]

    graph = agent(ScriptedModel(script=[calling("?")]), [look])
    ((trace, score),) = [one async for one in run(graph, [TASK], checklist=RULES, allow_real=["look"])]
    assert (calls, trace.attributes[CUT]) == (["?", "?"], CRASH)
    assert score is not None
    assert score.lower == pytest.approx(1 / 6)


class Reads(ScriptedModel):
    """A model of a short context."""

    def _next(self, messages: Any) -> AIMessage:
        if len(messages) > 3:
            raise ContextOverflowError("the prompt has 9 tokens, the model reads at most 8")
        return super()._next(messages)


async def test_a_context_that_overflows_cuts_the_turn() -> None:
    graph = agent(Reads(script=[calling("7"), calling("7"), calling("7")]), [Desk().tool()])
    ((trace, score),) = [one async for one in run(graph, [TASK], checklist=RULES, allow_real=["look"])]
    assert (trace.attributes[CUT], trace.failure) == ("context", None)
    assert score is not None
    assert score.lower == score.upper == score.reward == pytest.approx(1 / 6)
    assert {one.reason for one in score.turns[1].verdicts} == {"limit"}


async def test_no_way_to_end_a_dialogue_beats_failing_honestly() -> None:
    """A group of one that does right and one that fails; the failure is exchanged for each thing that the policy can
    bring about."""
    right = (calling("7"), AIMessage("It was shipped."), AIMessage("It was shipped."))
    _, good = await result(*right)
    _, failed = await result(*HONEST)
    limits = RolloutLimits(max_steps=2)
    _, overlong = await result(*[calling("7")] * 9, limits=limits)
    _, crashed = await result(calling("?"))
    _, spent = await result(*[calling("7")] * 9, limits=RolloutLimits(max_tokens=1))
    for level in LEVELS:
        was = advantages([good, failed], level=level).rollouts[1]
        for broken in (overlong, crashed, spent):
            now = advantages([good, broken], level=level).rollouts[1]
            assert now.left_out is None
            if now.scalar is None and not now.steps:
                continue  # it was stopped before its first step was recorded: there is no token to learn
            assert now(0, 0) <= was(0, 0) + 1e-9, level


async def test_a_verifier_that_raises_ends_its_own_dialogue_alone() -> None:
    def verify(task: Task, world: Any, trace: Trace) -> dict[str, float]:
        if task.id == "bad":
            raise KeyError("order")
        return {"solved": 1.0}

    async def dialogues() -> AsyncIterator[Any]:
        tasks = [Task(id=name, turns=("Hi",)) for name in ("good", "bad", "fine")]
        graph = agent(ScriptedModel(script=[AIMessage("It was shipped.")], per_turn=True), [])
        async for one in run(graph, tasks, checklist=RULES, verify=verify, store=SQLStore("sqlite://")):
            yield one

    done = {trace.task_id: (trace, score) async for trace, score in dialogues()}
    assert {name: score.pending for name, (_, score) in done.items()} == {"good": False, "bad": True, "fine": False}
    assert "the verifier raised: KeyError: 'order'" in done["bad"][0].failure.message
    assert done["fine"][0].outcomes == {"solved": 1.0}


async def costs(**options: Any) -> dict[Any, str]:
    """The failures of a run of three tasks, in which something goes wrong with `bad`."""
    tasks = [Task(id=name, turns=("Hi",)) for name in ("good", "bad", "fine")]
    options = {"graph": agent(ScriptedModel(script=[AIMessage("It was shipped.")], per_turn=True), []), **options}
    found = run(tasks=tasks, checklist=RULES, store=SQLStore("sqlite://"), **options)
    done = [(trace, score) async for trace, score in found]
    assert len(done) == 3
    assert all(score is not None and score.pending == (trace.failure is not None) for trace, score in done)
    return {trace.task_id: trace.failure.message for trace, _ in done if trace.failure}


@pytest.mark.parametrize(
    ("outcomes", "problem"),
    [
        (None, "the outcomes are a NoneType; expected a mapping"),
        ([("solved", 1.0)], "the outcomes are a list"),
        ({"solved": "yes"}, "the outcome 'solved' is 'yes'; expected a name with a finite number or None"),
        ({"solved": float("nan")}, "the outcome 'solved' is nan"),
        ({"solved": float("inf")}, "the outcome 'solved' is inf"),
        ({"solved": 10**400}, "OverflowError"),
        ({3: 1.0}, "the outcome 3 is 1.0"),
        ({"": 1.0}, "the outcome '' is 1.0"),
    ],
)
async def test_outcomes_that_are_none_end_their_own_dialogue_alone(outcomes: Any, problem: str) -> None:
    failures = await costs(verify=lambda task, world, trace: outcomes if task.id == "bad" else {"solved": True})
    assert list(failures) == ["bad"]
    assert problem in failures["bad"]


async def test_whatever_raises_around_a_dialogue_ends_that_dialogue_alone() -> None:
    def leaves(task: Task, world: Any, trace: Trace) -> dict[str, float]:
        if task.id == "bad":
            raise SystemExit(1)
        return {}

    @contextmanager
    def closes(task: Task) -> Iterator[None]:
        yield
        if task.id == "bad":
            raise RuntimeError("the desk is locked")

    asked = Counter[str]()

    def graph(task: Task) -> Any:
        asked[task.id] += 1
        if task.id == "bad" and asked[task.id] > 2:  # once the run has begun
            raise RuntimeError("no graph")
        return agent(ScriptedModel(script=[AIMessage("It was shipped.")], per_turn=True), [])

    assert (await costs(verify=leaves)) == {"bad": "the verifier raised: SystemExit: 1"}
    closing = await costs(context=closes)
    assert closing == {"bad": "the dialogue's world could not be closed: RuntimeError: the desk is locked"}
    made = await costs(graph=graph)
    assert made == {"bad": "the dialogue's agent, tools or user could not be made: RuntimeError: no graph"}
