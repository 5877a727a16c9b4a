"""Runs that are killed and run again: every dialogue is stored exactly once, and those under way go on after their last
finished turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import Field

from cm2_agent import Checklist, Item, RolloutLimits, Task, run
from cm2_agent.errors import BudgetExhausted, ToolError
from cm2_agent.models.batching import current_seat
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.runner.rollout import Rollouts
from cm2_agent.store import SQLStore
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run import Run
from cm2_agent.types.run_attributes import CUT
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from tests.bench.bench_resume import TURNS, found, killed
from tests.graphs.test_conversation import asking
from tests.strategies import as_stored
from tests.tracing import apps

REPLIES = Checklist(Item("replies", check={"replied": True}), name="r")
SCRIPT = [apps.calls(1), AIMessage(content="one"), apps.calls(2), AIMessage(content="two"), AIMessage(content="bye")]


@pytest.mark.slow
@pytest.mark.parametrize(("database", "kills"), [("sqlite", 4), ("postgresql", 2)])
def test_killed_at_random_points_every_dialogue_is_stored_exactly_once(
    database: str, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}" if database == "sqlite" else request.getfixturevalue("postgres_url")
    count, begun = killed(tmp_path, url, kills)
    result = found(url, kills, begun)
    assert count == kills
    assert result["stored"] == result["dialogues"]
    assert (result["missing"], result["twice"], result["broken"], result["left"]) == (0, 0, 0, 0)
    assert result["resumed"] > 0  # some went on in the middle
    assert result["turns_again"] <= kills * 4  # nothing but the turns under way began again


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    with SQLStore(f"sqlite:///{tmp_path / 'resume.db'}") as made:
        yield made


class Mortal(apps.ScriptedModel):
    """Waits for ever behind its `last` call, those of all dialogues counted; `then(number)` is called before each."""

    last: int
    made: list[int] = Field(default_factory=list)
    seeds: list[Any] = Field(default_factory=list)
    stuck: asyncio.Event = Field(default_factory=asyncio.Event)
    then: Callable[[int], None] = lambda number: None

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self.made.append(len(messages))
        seat = current_seat()
        self.seeds.append(None if seat is None else seat.next_seed())
        self.then(len(self.made))
        if len(self.made) > self.last:
            self.stuck.set()
            await asyncio.Event().wait()
        return await super()._agenerate(messages)


def mortal(last: int = 99, **options: Any) -> tuple[Mortal, Any]:
    model = Mortal(script=SCRIPT, last=last, **options)
    return model, apps.agent(model)


async def cut_short(results: Any, stuck: asyncio.Event) -> None:
    """What a kill leaves behind: the run is stopped while something waits."""
    running = asyncio.ensure_future(anext(results))
    await stuck.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def finished(results: Any) -> list[tuple[Trace, Score]]:
    return [result async for result in results]


def options(store: SQLStore | None, **more: Any) -> dict[str, Any]:
    return {"checklist": REPLIES, "store": store, "allow_real": ["look", "ask_human"], "name": "nightly", **more}


TASK = Task(id="t", turns=TURNS)


@pytest.mark.parametrize("lockstep", [False, True])
async def test_a_dialogue_goes_on_as_if_nothing_had_happened(store: SQLStore, lockstep: bool) -> None:
    """In lockstep it goes on in its random stream too: its calls draw what they would have drawn."""
    model, graph = mortal()
    ((whole, _),) = await finished(run(graph, [TASK], **options(None, lockstep=lockstep)))
    drawn = list(model.seeds)
    for last, finished_turns in ((1, 0), (3, 1), (4, 2)):
        model, graph = mortal(last)
        await cut_short(run(graph, [TASK], **options(store, lockstep=lockstep, name=f"run {last}")), model.stuck)
        assert store.checkpointer().pending() == (() if finished_turns == 0 else (f"dialogue:run {last}/t@1/0",))
        model, graph = mortal()
        ((trace, score),) = await finished(run(graph, [TASK], **options(store, lockstep=lockstep, name=f"run {last}")))
        assert len(model.made) == [5, 3, 1][finished_turns]
        assert model.seeds == drawn[-len(model.made) :]
        assert trace.messages == whole.messages
        assert [call.prompt_ids for call in trace.calls] == [call.prompt_ids for call in whole.calls]
        assert [call.input for call in trace.calls] == [call.input for call in whole.calls]
        assert (score.reward, store.trace(trace.id)) == (1.0, as_stored(trace))
        assert store.checkpointer().pending() == ()


async def test_an_unnamed_run_leaves_nothing_behind(store: SQLStore) -> None:
    model, graph = mortal(4)
    await cut_short(run(graph, [TASK], **options(store, name=None)), model.stuck)
    assert store.checkpointer().pending() == ()


async def test_a_dialogue_of_other_tools_or_another_gate_begins_again(store: SQLStore) -> None:
    model, graph = mortal(4)
    await cut_short(run(graph, [TASK], **options(store)), model.stuck)
    strict = Checklist(Item("replies", check={"replied": True}, required_for_next_turn=True), name="strict")
    model, graph = mortal()
    ((trace, _),) = await finished(run(graph, [TASK], **options(store, checklist=strict)))
    assert len(model.made) == 5
    assert len(trace.runs) == 3
    assert store.checkpointer().pending() == ()


async def test_a_crash_between_storing_and_forgetting_does_no_harm(store: SQLStore) -> None:
    model, graph = mortal(4)
    await cut_short(run(graph, [TASK], **options(store)), model.stuck)
    store.save_runs([Run(id="r", thread="nightly/t@1/0")])
    model, graph = mortal()
    ((trace, _),) = await finished(run(graph, [TASK], **options(store)))
    assert model.made == []
    assert [one.id for one in trace.runs] == ["r"]
    assert store.checkpointer().pending() == ()


class Judging:
    """A scorer that waits for ever while it is down."""

    version = "judging"
    checklist = None

    def __init__(self) -> None:
        self.up = False
        self.stuck = asyncio.Event()

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        if not self.up:
            self.stuck.set()
            await asyncio.Event().wait()
        return Score(trace_id=trace.id, reward_version=self.version, reward=1.0)

    async def gate(self, trace: Trace, turn: int, task: Task | None = None) -> bool | None:
        return True

    def gate_hash(self, task: Task | None = None) -> str | None:
        return None


async def test_a_dialogue_that_had_ended_but_was_not_stored_is_not_run_again(store: SQLStore) -> None:
    scorer = Judging()
    common = {**options(store, scorer=scorer, limits=RolloutLimits(max_turns=2)), "checklist": None}
    await cut_short(run(mortal()[1], [TASK], **common), scorer.stuck)
    scorer.up = True
    model, graph = mortal()
    ((trace, score),) = await finished(run(graph, [TASK], **common))
    assert model.made == []
    assert (len(trace.runs), trace.attributes[CUT], score.reward) == (2, "turns", 1.0)


class Told:
    """Backends, or a world, that remember what they were told; `failure` as a run's backends have it."""

    def __init__(self) -> None:
        self.told = 0
        self.failure: Exception | None = None

    def state(self) -> JSON:
        return {"told": self.told}

    def restore(self, state: JSON) -> None:
        self.told = state["told"]


class Forgetful:
    told = 0
    failure = None


def rollouts(store: SQLStore, model: Any, **more: Any) -> Any:
    made = Rollouts(
        graph=lambda task: apps.agent(model),
        scorer=ChecklistScorer(REPLIES),
        store=store,
        name="nightly",
        resumable=True,
        allow_real=("look",),
        **more,
    )
    return made.as_finished([(TASK, 0)], 1)


@pytest.mark.parametrize("place", ["backends", "world"])
@pytest.mark.parametrize("kind", [Told, Forgetful])
async def test_what_the_tools_have_been_through_comes_back_or_the_dialogue_begins_again(
    store: SQLStore, place: str, kind: Any
) -> None:
    parts: list[Any] = [kind(), kind()]
    current = iter(parts)

    @contextmanager
    def world(task: Task) -> Iterator[Any]:
        yield next(current)

    def backends(task: Task, thread: str, number: int) -> Any:
        return next(current)

    more: dict[str, Any] = {"backends": backends} if place == "backends" else {"context": world}

    def then(number: int) -> None:
        parts[0].told = number

    model = mortal(3, then=then)[0]
    await cut_short(rollouts(store, model, **more), model.stuck)
    model = mortal()[0]
    await finished(rollouts(store, model, **more))
    assert (len(model.made), parts[1].told) == ((3, 2) if kind is Told else (5, 0))


async def test_an_exhausted_budget_stores_nothing_and_the_run_goes_on_later(store: SQLStore) -> None:
    told = Told()

    def then(number: int) -> None:
        if number == 3:
            told.failure = BudgetExhausted("0 USD left")

    with pytest.raises(BudgetExhausted):
        await finished(rollouts(store, mortal(then=then)[0], backends=lambda *_: told))
    assert list(store.traces()) == []
    told.failure = None
    model = mortal()[0]
    ((trace, _),) = await finished(rollouts(store, model, backends=lambda *_: told))
    assert (len(trace.runs), len(model.made)) == (3, 3)


async def test_what_failed_in_the_tools_makes_the_reward_null(store: SQLStore) -> None:
    told = Told()
    told.failure = ToolError("the simulator timed out")
    ((trace, score),) = await finished(rollouts(store, mortal()[0], backends=lambda *_: told))
    assert trace.failure is not None
    assert (trace.failure.kind, trace.failure.message, score.reward) == ("ToolError", "the simulator timed out", None)
    assert len(trace.runs) == 1


async def test_in_a_run_nobody_answers_an_interrupt(store: SQLStore) -> None:
    ((trace, score),) = await finished(run(asking("sure?"), [TASK], **{**options(store), "allow_real": ()}))
    assert trace.failure is not None
    assert "nobody can answer" in trace.failure.message
    assert score.reward is None
    assert store.checkpointer().pending() == ()


async def test_a_graph_that_keeps_its_own_history_goes_on_too(store: SQLStore) -> None:
    saver = InMemorySaver()
    model = mortal(3)[0]
    await cut_short(run(apps.agent(model, checkpointer=saver), [TASK], **options(store)), model.stuck)
    for kept in (saver, InMemorySaver()):
        model = mortal()[0]
        name = {"name": "nightly"} if kept is saver else {"name": "again"}
        ((trace, _),) = await finished(run(apps.agent(model, checkpointer=kept), [TASK], **options(store, **name)))
        assert [message.text for message in trace.messages if message.role == "user"] == list(TURNS)
        assert len(model.made) == (3 if kept is saver else 5)


@pytest.mark.parametrize(
    ("limit", "cut"), [({"max_tokens": 15}, "tokens"), ({"max_turns": 1}, "turns"), ({"max_seconds": 5}, "time")]
)
async def test_a_limit_cuts_without_calling_it_a_failure(limit: dict[str, Any], cut: str) -> None:
    graph = mortal(3 if cut == "time" else 99)[1]
    ((trace, score),) = await finished(run(graph, [TASK], **options(None, limits=RolloutLimits(**limit))))
    assert (trace.attributes[CUT], trace.failure) == (cut, None)
    assert score.reward == pytest.approx(len([turn for turn in trace.turns if turn.steps[-1].is_reply]) / 3)
