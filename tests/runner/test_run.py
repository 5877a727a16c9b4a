"""Running tasks: groups, gates, worlds, limits, failures that stay their own, repeatable lockstep, resuming, and no
unnamed real tool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from cm2_agent import (
    Checklist,
    Item,
    LLMJudge,
    RolloutLimits,
    Score,
    Stack,
    Task,
    Trace,
    run,
    score_groups,
    score_traces,
    watch,
)
from cm2_agent.errors import ChecklistError, StoreError, TaskError, ToolError
from cm2_agent.graphs import agent as our_agent
from cm2_agent.graphs import tools_of
from cm2_agent.rewards.judges.panel import Cascade
from cm2_agent.runner.rollout import dialogue_seed
from cm2_agent.store import SQLStore
from cm2_agent.types.run_attributes import CENSORED_TURN, CUT, GATE, ROLLOUT
from tests.judge_server import FREE, Asked, function_model
from tests.strategies import as_stored
from tests.tracing import apps

LOOKS_UP = Item("looks_up", check={"called": "look"}, turn=0, required_for_next_turn=True)
REPLIES = Item("replies", check={"replied": True})
CHECKLIST = Checklist(LOOKS_UP, REPLIES, name="looking")
REAL = ["look", "ask_human"]


def reply(text: str) -> AIMessage:
    return AIMessage(content=text)


def graph(*script: Any, **options: Any) -> Any:
    return apps.agent(apps.ScriptedModel(script=list(script)), **options)


async def finished(results: Any) -> list[tuple[Trace, Score]]:
    return [result async for result in results]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    with SQLStore(f"sqlite:///{tmp_path / 'runner.db'}") as made:
        yield made


TASK = Task(id="t", turns=("look 1 up", "and thanks"))


@pytest.mark.parametrize("checkpointer", [None, InMemorySaver()])
async def test_a_group_is_run_scored_stored_and_read_back_as_a_group(store: SQLStore, checkpointer: Any) -> None:
    app = graph(apps.calls(1), reply("one"), reply("bye"), checkpointer=checkpointer)
    done = await finished(run(app, [TASK], group=3, checklist=CHECKLIST, store=store, allow_real=REAL))
    assert [score.reward for _, score in done] == [1.0, 1.0, 1.0]
    assert sorted(trace.attributes[ROLLOUT] for trace, _ in done) == [0, 1, 2]
    assert [len(trace.turns) for trace, _ in done] == [2, 2, 2]
    (group,) = store.groups(checklist=CHECKLIST)
    assert [rollout.trace.id for rollout in group.rollouts] == sorted(trace.id for trace, _ in done)
    read = {rollout.trace.id: rollout.trace for rollout in group.rollouts}
    assert {trace.id: as_stored(trace) for trace, _ in done} == read


async def test_the_gate_ends_the_rollout_and_the_unreached_turn_counts_as_zero() -> None:
    app = graph(reply("no idea"), reply("you are welcome"))
    ((trace, score),) = await finished(run(app, [TASK], checklist=CHECKLIST, allow_real=REAL))
    assert len(trace.turns) == 1
    assert trace.attributes[CENSORED_TURN] == 0
    assert trace.attributes[GATE] == CHECKLIST.hash
    assert score.reward == pytest.approx(0.25)  # one of two items in the first of two turns
    assert [turn.reached for turn in score.turns] == [True, False]


async def test_without_strict_items_every_turn_is_reached() -> None:
    app = graph(reply("no idea"), reply("you are welcome"))
    ((trace, score),) = await finished(run(app, [TASK], checklist=Checklist(REPLIES, name="r"), allow_real=REAL))
    assert len(trace.turns) == 2
    assert GATE not in trace.attributes
    assert score.reward == 1.0


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("stored", [False, True])
async def test_a_turn_that_the_gate_judged_is_not_judged_again_for_the_score(
    stored: bool, cascade: bool, store: SQLStore
) -> None:
    asked: list[Asked] = []
    judge: Any = LLMJudge(function_model(asked=asked), price=FREE)
    if cascade:
        judge = Cascade(judge, LLMJudge(function_model(asked=asked, name="strong"), price=FREE))
    strict = Checklist(Item("polite", "Is the reply polite?", required_for_next_turn=True), name="polite")
    app = graph(reply("Of course, here is what you asked for."), reply("With pleasure, and thank you for asking."))
    options: dict[str, Any] = {
        "checklist": strict,
        "judge": judge,
        "store": store if stored else None,
        "allow_real": REAL,
    }
    ((_, score),) = await finished(run(app, [TASK], **options))
    assert score.reward == 1.0
    assert len(asked) == judge.usage.calls == 2


async def test_a_limit_cuts_the_dialogue_without_calling_it_a_failure() -> None:
    app = graph(*[apps.calls(number) for number in range(50)])
    ((trace, score),) = await finished(
        run(app, [TASK], checklist=CHECKLIST, allow_real=REAL, limits=RolloutLimits(max_steps=3))
    )
    assert trace.failure is None
    assert trace.attributes[CUT] == "steps"
    assert score.reward == pytest.approx(0.25)


async def test_one_dialogue_that_crashes_is_null_and_stops_no_other(store: SQLStore) -> None:
    class Moody(apps.ScriptedModel):
        def _next(self, messages: Any) -> AIMessage:
            if "boom" in messages[-1].text:
                raise RuntimeError("boom")
            return super()._next(messages)

    tasks = [Task(id="bad", turns=("boom",)), Task(id="good", turns=("look 1 up",))]
    app = apps.agent(Moody(script=[apps.calls(1), reply("one")]))
    results = await finished(run(app, tasks, checklist=CHECKLIST, store=store, allow_real=REAL))
    done = {trace.task_id: (trace, score) for trace, score in results}
    trace, score = done["bad"]
    assert score.reward is None
    assert trace.failure is not None
    assert trace.failure.kind == "ModelError"
    assert done["good"][1].reward == 1.0
    assert store.score(trace.id) == score


@dataclass
class World:
    task: str
    closed: bool = False
    seen: list[str] = field(default_factory=list)


async def test_every_dialogue_gets_a_world_of_its_own_which_is_closed_whatever_happens() -> None:
    opened: list[World] = []

    @contextmanager
    def worlds(task: Task) -> Iterator[World]:
        world = World(task=task.id)
        opened.append(world)
        try:
            yield world
        finally:
            world.closed = True

    def verify(task: Task, world: World, trace: Trace) -> dict[str, float | None]:
        assert not world.closed
        return {"success": float(world.task == task.id == trace.task_id)}

    tasks = [Task(id=name, turns=("x",)) for name in ("a", "b")]
    for app in (graph(reply("hi")), graph(RuntimeError("dead"))):
        opened.clear()
        options: dict[str, Any] = {
            "checklist": Checklist(REPLIES, name="r"),
            "context": worlds,
            "verify": verify,
            "allow_real": REAL,
        }
        done = await finished(run(app, tasks, group=2, **options))
        assert [trace.outcomes for trace, _ in done] == [{"success": 1.0}] * 4
        assert len(opened) == 4
        assert all(world.closed for world in opened)


async def test_lockstep_yields_in_the_order_of_the_tasks_and_seeds_depend_on_nothing_else() -> None:
    tasks = [Task(id=f"t{number}", turns=("x",)) for number in range(7)]
    results = run(
        graph(reply("hi")),
        tasks,
        group=2,
        checklist=Checklist(REPLIES, name="r"),
        allow_real=REAL,
        lockstep=True,
        concurrency=3,
    )
    assert [(trace.task_id, trace.attributes[ROLLOUT]) for trace, _ in await finished(results)] == [
        (task.id, number) for task in tasks for number in range(2)
    ]
    assert dialogue_seed(0, "t1", 0) == dialogue_seed(0, "t1", 0)
    assert len({dialogue_seed(seed, task, number) for seed in range(3) for task in "ab" for number in range(3)}) == 18


@pytest.mark.parametrize("options", [{}, {"lockstep": True}, {"name": "n"}, {"concurrency": 1}])
async def test_the_same_task_twice_is_twice_as_many_rollouts(store: SQLStore, options: dict[str, Any]) -> None:
    plain = Checklist(REPLIES, name="plain")
    other = Task(id="other", turns=("look 1 up",))

    async def again() -> list[tuple[Trace, Score]]:
        app = apps.agent(apps.ScriptedModel(script=[reply("one")], per_turn=True))
        tasks = [TASK, other, TASK.model_copy()]
        return await finished(run(app, tasks, group=2, checklist=plain, store=store, allow_real=REAL, **options))

    done = await again()
    assert len({trace.id for trace, _ in done}) == 6
    assert sorted(trace.attributes[ROLLOUT] for trace, _ in done if trace.task_id == "t") == [0, 1, 2, 3]
    assert {(len(trace.turns), len(trace.runs)) for trace, _ in done if trace.task_id == "t"} == {(2, 2)}
    assert all(score is not None for _, score in done)
    assert sorted(len(group.rollouts) for group in store.groups(checklist=plain)) == [2, 4]
    if "name" in options:
        assert {trace.id for trace, _ in await again()} == {trace.id for trace, _ in done}
        assert len(list(store.traces())) == 6


async def test_two_tasks_of_one_id_and_version_are_refused() -> None:
    tasks = [TASK, Task(id="t", turns=("look 2 up",))]
    with pytest.raises(TaskError, match=r"two different tasks have the id 't' and version 1"):
        run(graph(reply("one")), tasks, checklist=CHECKLIST, allow_real=REAL)
    done = await finished(
        run(graph(reply("one")), [TASK, Task(id="t", version=2, turns=("look 2 up",))], allow_real=REAL)
    )
    assert len({trace.id for trace, _ in done}) == 2


async def test_a_named_run_goes_on_where_it_stopped(store: SQLStore) -> None:
    tasks = [Task(id=f"t{number}", turns=("x",)) for number in range(4)]
    once: dict[str, Any] = {"allow_real": REAL, "name": "nightly", "concurrency": 1}
    options = {"checklist": Checklist(REPLIES, name="r"), "store": store, **once}
    first = run(graph(reply("first")), tasks, **options)
    seen = [await anext(first), await anext(first)]
    await first.aclose()  # type: ignore[attr-defined]
    done = await finished(run(graph(reply("second")), tasks, **options))
    stored = {trace.id for trace, _ in seen}
    assert len(done) == 4
    assert {trace.id: trace.messages[-1].text for trace, _ in done if trace.id in stored} == dict.fromkeys(
        stored, "first"
    )
    assert [trace.messages[-1].text for trace, _ in done].count("second") >= 1
    assert len(list(store.traces())) == 4


async def test_no_real_tool_is_called_unless_it_is_named() -> None:
    called: list[str] = []

    @tool
    def refund(order: int) -> str:
        """Refund an order."""
        called.append("refund")
        return "done"

    calls_refund = AIMessage(
        content="", tool_calls=[{"name": "refund", "args": {"order": 1}, "id": "r", "type": "tool_call"}]
    )
    model = apps.ScriptedModel(script=[calls_refund, reply("refunded")])
    with pytest.raises(ToolError, match=r"refund.*--allow-real refund"):
        run(our_agent(model, [refund]), [TASK], checklist=CHECKLIST)
    with pytest.raises(ToolError, match="names nothing"):
        run(our_agent(model, [refund]), [TASK], checklist=CHECKLIST, allow_real=["refund", "nothing"])

    async def plainly(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(content=str(await refund.ainvoke({"order": 1})))]}

    def of(node: Any) -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("node", node)
        graph.add_edge(START, "node")
        return graph.compile()

    with pytest.raises(ToolError, match=r"refund \(node node\)"):
        run(of(plainly), [TASK], checklist=CHECKLIST)

    def made() -> Any:  # by code that only runs in the dialogue: nothing that could be looked at beforehand
        return StructuredTool.from_function(
            lambda order: called.append("refund"), name="refund", description="Refund an order."
        )

    async def hidden(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(content=str(await made().ainvoke({"order": 1})))]}

    assert tools_of(of(hidden)) == {}
    ((trace, score),) = await finished(run(of(hidden), [TASK], checklist=CHECKLIST))
    assert called == []
    assert score.reward is None
    assert trace.failure is not None
    assert trace.failure.kind == "ToolError"
    assert "refund" in trace.failure.message


async def test_what_cannot_be_run_is_refused_before_anything_runs(store: SQLStore) -> None:
    app = graph(reply("hi"))
    with pytest.raises(TaskError, match="scripted turns"):
        run(app, [Task(id="p", persona="a customer")], checklist=CHECKLIST, allow_real=REAL, store=store)
    late = Checklist(Item("late", check={"replied": True}, turn=3), name="l")
    with pytest.raises(ChecklistError, match="no item in the 1 turns"):
        run(app, [Task(id="q", turns=("x",))], checklist=late, allow_real=REAL)
    with pytest.raises(TaskError, match="group is 0"):
        run(app, [TASK], group=0, checklist=CHECKLIST, allow_real=REAL)
    assert list(store.tasks()) == []


async def test_closing_early_cancels_what_runs() -> None:
    ended: list[str] = []

    class Slow(apps.ScriptedModel):
        async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            try:
                await asyncio.sleep(0 if "quick" in messages[-1].text else 600)
            finally:
                ended.append(messages[-1].text)
            return await super()._agenerate(messages)

    tasks = [Task(id="q", turns=("quick",)), Task(id="s", turns=("slow",))]
    results = run(
        apps.agent(Slow(script=[reply("hi")])), tasks, checklist=Checklist(REPLIES, name="r"), allow_real=REAL
    )
    assert (await anext(results))[0].task_id == "q"
    await results.aclose()  # type: ignore[attr-defined]
    assert ended == ["quick", "slow"]


@pytest.mark.parametrize("wrong", [Stack(CHECKLIST), 7, {"name": "x"}])
async def test_what_is_no_checklist_is_refused(wrong: Any) -> None:
    expected = "expected a Checklist or the path of its YAML file; a scorer, such as a Stack, is given as scorer="
    with pytest.raises(ChecklistError, match=f"checklist is {type(wrong).__name__} .*; {expected}"):
        await finished(run(graph(reply("hi")), [TASK], checklist=wrong, allow_real=REAL))
    with pytest.raises(ChecklistError, match=expected):
        await finished(score_traces([], wrong))
    with pytest.raises(ChecklistError, match="expected a Checklist or the path of its YAML file"):
        watch(graph(reply("hi")), wrong)


async def test_the_url_of_a_store_is_no_store() -> None:
    url: Any = "sqlite:///x.db"
    expected = r"store is 'sqlite:///x.db'; expected an SQLStore: store=SQLStore\("
    with pytest.raises(StoreError, match=expected):
        await finished(run(graph(reply("hi")), [TASK], checklist=CHECKLIST, store=url, allow_real=REAL))
    with pytest.raises(StoreError, match=expected):
        await finished(score_traces([], CHECKLIST, store=url))
    with pytest.raises(StoreError, match=expected):
        await finished(score_groups([], Stack(CHECKLIST), store=url))


async def test_stored_traces_are_scored_by_a_checklist_or_their_tasks_own(store: SQLStore) -> None:
    own = Checklist(Item("looks", check={"called": "look"}), name="own")
    task = Task.model_validate({"id": "t", "turns": ["look 1 up"], "checklist": own.to_json()})
    done = await finished(run(graph(apps.calls(1), reply("one")), [task], store=store, allow_real=REAL))
    assert [score.reward for _, score in done] == [1.0]
    other = Checklist(Item("never", check={"never_called": "look"}), name="other")
    scored = [pair async for pair in score_traces(store.traces(), other, store=store)]
    assert [score.reward for _, score in scored] == [0.0]
    assert len(store.reward_versions()) == 2
    again = [pair async for pair in score_traces(store.traces(), store=store)]
    assert [score for _, score in again] == [score for _, score in done]
    with pytest.raises(StoreError, match="no checklist"):
        _ = [pair async for pair in score_traces(store.traces())]
