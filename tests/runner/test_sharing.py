"""Several processes do one run: each rollout is held once, and what one of them leaves is taken over."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from sqlalchemy import func, select, update

from cm2_agent import Checklist, Item, Task, run
from cm2_agent.errors import BudgetExhausted, TaskError
from cm2_agent.store import SQLStore
from cm2_agent.store.work_tables import claims
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from tests.bench.bench_resume import TURNS
from tests.runner.test_resume import SCRIPT, Mortal
from tests.tracing import apps

REPLIES = Checklist(Item("replies", check={"replied": True}), name="r")
TASKS = [Task(id=f"t{number}", turns=("Hello",)) for number in range(6)]


def talker() -> tuple[apps.ScriptedModel, Any]:
    model = apps.ScriptedModel(script=[AIMessage(content="Hi")])
    return model, apps.agent(model)


def runner(graph: Any, store: SQLStore, tasks: list[Task], **more: Any) -> Any:
    common = {"checklist": REPLIES, "allow_real": ["look", "ask_human"], "name": "shared", "concurrency": 2}
    return run(graph, tasks, store=store, **{**common, **more})


async def finished(results: Any) -> list[tuple[Trace, Score]]:
    return [result async for result in results]


def left(store: SQLStore) -> int:
    with store.database.reading() as connection:
        return connection.scalar(select(func.count()).select_from(claims)) or 0


@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("shard", [False, True])
async def test_several_do_each_rollout_once(store_url: str, shard: bool, lockstep: bool) -> None:
    held: list[str] = []
    with ExitStack() as opened:
        shown = []
        for _ in range(3):
            store = opened.enter_context(SQLStore(store_url))
            _, graph = talker()
            shown.append(
                finished(
                    runner(
                        graph,
                        store,
                        TASKS,
                        group=2,
                        shard=shard,
                        lockstep=lockstep,
                        sinks=[lambda trace, score: held.append(trace.id)],
                    )
                )
            )
        results = await asyncio.gather(*shown)
        everything = [f"shared/t{task}@1/{number}" for task in range(6) for number in range(2)]
        assert sorted(held) == everything
        if shard:
            assert sorted(trace.id for each in results for trace, _ in each) == everything
        elif lockstep:
            assert all([trace.id for trace, _ in each] == everything for each in results)
        else:
            assert all(sorted(trace.id for trace, _ in each) == everything for each in results)
        stored = list(store.traces())
        assert [len(trace.runs) for trace in stored] == [1] * len(everything)
        assert left(store) == 0


async def test_what_a_process_left_is_taken_over_where_it_stood(store_url: str) -> None:
    """The process that was taken for dead ends later after all: it stores nothing, and reads what the other did."""
    go = asyncio.Event()

    class Slow(Mortal):
        async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            if len(self.made) == 3:
                self.stuck.set()
                await go.wait()
            return await super()._agenerate(messages)

    slow = Slow(script=SCRIPT, last=99)
    task = Task(id="t", turns=TURNS)
    with SQLStore(store_url) as one, SQLStore(store_url) as two:
        first = asyncio.create_task(finished(runner(apps.agent(slow), one, [task])))
        await slow.stuck.wait()
        with one.database.writing() as connection:
            connection.execute(update(claims).values(until=1))
        quick = Mortal(script=SCRIPT, last=99)
        ((trace, score),) = await finished(runner(apps.agent(quick), two, [task]))
        assert len(quick.made) == 3  # the first turn's two calls were not made again
        assert (len(trace.runs), score.reward) == (3, 1.0)
        go.set()
        ((read, again),) = await first
        assert [one.id for one in read.runs] == [one.id for one in trace.runs]
        assert (again.reward, len(list(two.traces()))) == (1.0, 1)
        assert left(one) == 0
        assert one.checkpointer().pending() == ()


class Spent:
    """A scorer that may not be asked any more."""

    version = "spent"
    checklist = None

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        raise BudgetExhausted("nothing is left")

    async def gate(self, trace: Trace, turn: int, task: Task | None = None) -> bool | None:
        return True

    def gate_hash(self, task: Task | None = None) -> str | None:
        return None


async def test_an_error_gives_back_what_was_claimed(store_url: str) -> None:
    with SQLStore(store_url) as store:
        with pytest.raises(BudgetExhausted, match="nothing is left"):
            await finished(runner(talker()[1], store, TASKS, checklist=None, scorer=Spent()))
        assert len(list(store.traces())) < len(TASKS)
        assert left(store) == 0


async def test_a_shard_resumes_and_counts_its_own(store_url: str) -> None:
    _, graph = talker()
    with SQLStore(store_url) as store:
        assert len(await finished(runner(graph, store, TASKS[:2]))) == 2
        own = await finished(runner(graph, store, TASKS, shard=True))
        assert Counter(trace.attributes["cm2.task.id"] for trace, _ in own) == Counter(one.id for one in TASKS[2:])
        assert await finished(runner(graph, store, TASKS, shard=True)) == []
        with pytest.raises(TaskError, match="the name 'shared' is of another run"):
            await finished(runner(graph, store, TASKS, shard=True, seed=3))


def test_a_shard_needs_a_name_and_a_store() -> None:
    with pytest.raises(TaskError, match="give it the run's name= and the store="):
        run(talker()[1], TASKS, shard=True)
