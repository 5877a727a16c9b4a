"""`watch` around a real graph with a real store, whatever happens to it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from cm2_agent import Checklist, Item, Redactor, Trace, View, watch
from cm2_agent.errors import ChecklistError, CM2Error, JudgeError
from cm2_agent.online.sampling import is_drawn
from cm2_agent.online.watch import flush
from cm2_agent.rewards.components.component import Context
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist_item import Item as ChecklistItem
from cm2_agent.types.score import Score, Verdict
from tests.tracing.apps import ScriptedModel, agent, calls

QUESTION: Any = {"messages": [("user", "what is 1?")]}
LOOKS = Checklist(Item("looks", check={"called": "look"}), name="looks")
ASKED = Checklist(Item("looks", check={"called": "look"}), Item("right", "Is the answer right?"), name="asked")


def app(**options: Any) -> Any:
    return agent(ScriptedModel(script=[calls(1), AIMessage(content="it is value 1")], per_turn=True), **options)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cm2.db'}"


def traces(url: str) -> list[Trace]:
    with SQLStore(url) as store:
        return list(store.traces())


def scores(url: str, checklist_or_version: str | None = None) -> list[Score]:
    with SQLStore(url) as store:
        found = [store.score(trace.id, checklist_or_version) for trace in store.traces()]
    return [score for score in found if score is not None]


def test_watch_keeps_the_graph_and_stores_what_it_does(url: str) -> None:
    plain = app()
    graph = watch(plain, store=url)
    assert type(graph) is type(plain)
    assert graph.invoke(QUESTION)["messages"][-1].content == "it is value 1"
    assert flush(300)
    (trace,) = traces(url)
    assert [message.role for message in trace.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [call.untrainable for call in trace.calls] == [None, None]
    assert scores(url) == []


def test_personal_data_is_replaced_before_anything_sees_it(url: str, tmp_path: Path) -> None:
    asked: list[str] = []
    received: list[Trace] = []

    class Noting(Kind):
        async def __call__(self, trace: Trace, turn: int | None, items: Sequence[ChecklistItem]) -> Sequence[Verdict]:
            asked.append(str(trace))
            return await super().__call__(trace, turn, items)

    answers = [calls(1), AIMessage(content="I wrote to ada@x.org about order 415-555-2671")]
    checklist = Checklist(*ASKED, Item("names_her", check={"reply_matches": r"ada@x\.org"}), name="asked")
    graph = watch(
        agent(ScriptedModel(script=answers, per_turn=True), checkpointer=InMemorySaver()),
        checklist,
        judge=Noting(),
        sample=1.0,
        budget_usd=99.0,
        store=url,
        sinks=[lambda trace, score: received.append(trace)],
        redact=Redactor(key=b"k"),
    )
    config: Any = {"configurable": {"thread_id": "T"}, "metadata": {"mail": "ada@x.org"}}
    for _ in range(2):
        state = graph.invoke({"messages": [("user", "I am ada@x.org")]}, config)
        assert "ada@x.org" in state["messages"][-1].content, "the application goes on with what was written"
        assert flush(300)
    assert len(asked) >= 2
    assert len(received) == 2
    assert "ada@x.org" not in str((asked, received))
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"ada@x.org" not in files
    assert Redactor(key=b"k").redact("ada@x.org").encode() in files
    (trace,) = traces(url)
    assert len(trace.turns) == 2
    (score,) = scores(url)
    named = [verdict.value for verdict in score.verdicts if verdict.item == "names_her"]
    assert named == [True, True], "checks are redacted like the runs"


def test_a_share_of_the_conversations_is_stored_each_whole(url: str) -> None:
    graph = watch(app(checkpointer=InMemorySaver()), LOOKS, store=url, sample_store=0.5)
    for _ in range(2):
        for number in range(40):
            graph.invoke(QUESTION, {"configurable": {"thread_id": f"thread-{number}"}})
    assert flush(300)
    stored = traces(url)
    assert {trace.id for trace in stored} == {f"thread-{n}" for n in range(40) if is_drawn(f"thread-{n}", 0.5)}
    assert 10 < len(stored) < 30
    assert {len(trace.runs) for trace in stored} == {2}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 3), (None, 3)])
def test_runs_without_a_thread_are_drawn_by_themselves(url: str, share: float | None, count: int) -> None:
    graph = watch(app(), store=url, sample_store=share)
    for _ in range(3):
        graph.invoke(QUESTION)
    assert flush(300)
    assert len(traces(url)) == count


def test_watch_scores_after_each_run_of_a_conversation(url: str) -> None:
    received: list[tuple[int, float | None]] = []

    def receive(trace: Trace, score: Score | None) -> None:
        received.append((len(trace.runs), None if score is None else score.reward))

    graph = watch(app(checkpointer=InMemorySaver()), LOOKS, store=url, sinks=[receive])
    for _ in range(3):
        graph.invoke(QUESTION, {"configurable": {"thread_id": "T"}})
        assert flush(300)
    assert received == [(1, 1.0), (2, 1.0), (3, 1.0)]
    (trace,) = traces(url)
    assert (trace.id, len(trace.turns)) == ("T", 3)
    (score,) = scores(url)
    assert (score.runs, score.length) == (3, 3)


def test_watch_takes_a_yaml_file(url: str, tmp_path: Path) -> None:
    path = tmp_path / "looks.yaml"
    path.write_text("name: looks\nversion: 1\nitems:\n  - id: looks\n    check: {called: look}\n", encoding="utf-8")
    watch(app(), path, store=url).invoke(QUESTION)
    assert flush(300)
    assert [score.reward for score in scores(url)] == [1.0]


class Kind:
    """A judge that says yes, and what that cost."""

    def __init__(self) -> None:
        self.spent_usd = 0.0

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[ChecklistItem]) -> Sequence[Verdict]:
        self.spent_usd += 1.0
        return [Verdict(item=item.id, value=True, weight=0, step=len(trace.steps)) for item in items]


def test_a_judge_sees_its_share_and_stops_at_its_budget(url: str) -> None:
    judge = Kind()
    graph = watch(app(), ASKED, judge=judge, sample=1.0, budget_usd=2.0, store=url)
    for _ in range(4):
        graph.invoke(QUESTION)
        assert flush(300)
    assert judge.spent_usd == 2.0
    unseen = Kind()
    watch(app(), ASKED, judge=unseen, sample=0.0, budget_usd=2.0, store=url).invoke(QUESTION)
    assert flush(300)
    assert unseen.spent_usd == 0.0


def test_further_rewards_are_components(url: str) -> None:
    async def short(trace: Trace) -> float | None:
        return 1.0 if len(trace.steps) <= 4 else 0.0

    async def broken(trace: Trace) -> float | None:
        raise OSError("no")

    seen: list[Score | None] = []
    graph = watch(app(), LOOKS, rewards=[short, broken], store=url, sinks=[lambda trace, score: seen.append(score)])
    graph.invoke(QUESTION)
    assert flush(300)
    assert seen[0] is not None
    assert seen[0].components == {"short": 1.0, "broken": None}
    assert seen[0].reward == 1.0


def test_a_reward_may_be_a_plain_function_and_its_failures_are_counted(url: str) -> None:
    def long(trace: Trace, context: Context) -> bool:
        return len(trace.steps) > 4 and context.task is None

    def lost(trace: Trace) -> float:
        return 7.0

    seen: list[Score | None] = []
    graph = watch(
        app(), rewards={"long": long, "lost": lost}, store=url, sinks=[lambda trace, score: seen.append(score)]
    )
    graph.invoke(QUESTION)
    graph.invoke(QUESTION)
    assert flush(300)
    assert [score.components for score in seen if score is not None] == [{"long": 0.0, "lost": None}] * 2
    with SQLStore(url) as store:
        assert "expected a number in [0, 1]" in str(store.incidents()["the reward lost gave no value"]["detail"])


def test_a_reward_of_groups_is_refused(url: str) -> None:
    def best(traces: Sequence[Trace]) -> list[float]:
        return [1.0] * len(traces)

    best.of_group = True  # type: ignore[attr-defined]
    with pytest.raises(ChecklistError, match="a live trace has none"):
        watch(app(), rewards=[best], store=url)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"judge": Kind()}, ValueError, "without sample and budget_usd"),
        ({"judge": Kind(), "sample": 0.1}, ValueError, "without budget_usd"),
        ({"judge": Kind(), "budget_usd": 1.0}, ValueError, "without sample"),
        ({"judge": "nobody:model", "sample": 0.1, "budget_usd": 1.0}, JudgeError, "Expected PROVIDER:MODEL"),
        ({"judge": "test", "sample": 0.1, "budget_usd": 1.0}, JudgeError, "the price of 'test:test' is not known"),
        ({"judge": lambda *_: [], "sample": 0.1, "budget_usd": 1.0}, ValueError, "spent_usd"),
        ({"judge": Kind(), "sample": 1.5, "budget_usd": 1.0}, ValueError, "between 0 and 1"),
        ({"judge": Kind(), "sample": 0.5, "budget_usd": -1.0}, ValueError, "0 or more"),
        ({"redact": str.lower}, TypeError, "redact is a method_descriptor; expected a Redactor"),
        ({"sample_store": 1.5}, ValueError, "sample_store is 1.5; expected a share"),
        ({"sample_store": float("nan")}, ValueError, "between 0 and 1"),
        ({"rewards": [Kind(), Kind()]}, ValueError, "same name"),
        ({"store": "sqlite:///no/such/folder/cm2.db", "strict": True}, CM2Error, "no/such/folder"),
        ({"store": "mysql://host/cm2"}, CM2Error, "expected sqlite:///FILE.db or postgresql"),
        ({"store": "cm2.db"}, CM2Error, "is not a URL"),
        ({"store": SQLStore("sqlite://"), "project": "shop"}, ValueError, "which has its own"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], says: str, url: str) -> None:
    with pytest.raises(error, match=says):
        watch(app(), ASKED, **{"store": url, **options})


def test_more_that_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="watched already"):
        watch(watch(app(), store=url), store=url)
    with pytest.raises(TypeError, match="compile"):
        watch("graph", store=url)
    with pytest.raises(ValueError, match="without a checklist"):
        watch(app(), judge=Kind(), sample=0.1, budget_usd=1.0, store=url)


def test_a_locked_database_neither_breaks_nor_slows_the_call(url: str, tmp_path: Path) -> None:
    """The calls come back while the database is locked, which they could not if they waited for it: the lock goes after
    them."""
    graph = watch(app(), LOOKS, store=url)
    lock = sqlite3.connect(tmp_path / "cm2.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for _ in range(3):
        assert graph.invoke(QUESTION)["messages"][-1].content == "it is value 1"
    lock.execute("ROLLBACK")
    lock.close()
    assert flush(300)
    assert len(traces(url)) == 3
    assert [score.reward for score in scores(url)] == [1.0] * 3


def test_a_destroyed_database_never_breaks_the_call(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    received: list[str] = []
    graph = watch(app(), LOOKS, store=url, sinks=[lambda trace, score: received.append(trace.id)])
    graph.invoke(QUESTION)
    assert flush(300)
    for path in tmp_path.glob("cm2.db*"):
        if path.is_file():
            path.write_bytes(b"this is no database " * 500)
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        for _ in range(3):
            assert graph.invoke(QUESTION)["messages"][-1].content == "it is value 1"
        assert not flush(0.5)
    assert len(received) == 1
    assert [record.message for record in caplog.records if "the store is away" in record.message] != []
    assert len(caplog.records) == 1
    for path in tmp_path.glob("cm2.db*"):
        if path.is_file():
            path.unlink()
    assert flush(300)
    assert len(traces(url)) == 3


def test_runs_after_the_file_was_removed_are_in_the_new_file(url: str, tmp_path: Path) -> None:
    graph = watch(app(), LOOKS, store=url)
    graph.invoke(QUESTION)
    assert flush(300)
    for path in tmp_path.glob("cm2.db*"):
        if path.is_file():
            path.unlink()
    graph.invoke(QUESTION)
    assert flush(300)
    assert len(traces(url)) == 1
    assert len(scores(url)) == 1


def test_a_check_that_raises_is_a_missing_verdict(url: str) -> None:
    def asks_too_much(view: View) -> bool:
        """Can a check raise?"""
        raise KeyError("no")

    graph = watch(app(), Checklist(asks_too_much, name="raises"), store=url)
    assert graph.invoke(QUESTION)["messages"][-1].content == "it is value 1"
    assert flush(300)
    assert [score.reward for score in scores(url)] == [None]


async def test_many_at_once(url: str) -> None:
    graph = watch(app(), LOOKS, store=url)
    await asyncio.gather(*(graph.ainvoke(QUESTION, {"configurable": {"thread_id": f"T{i % 5}"}}) for i in range(25)))
    assert flush(300)
    assert sorted((trace.id, len(trace.runs)) for trace in traces(url)) == [(f"T{i}", 5) for i in range(5)]
    assert {score.runs for score in scores(url)} == {5}


def test_what_is_waiting_is_saved_when_the_program_ends(url: str) -> None:
    code = f"""
import os
os.environ["LANGSMITH_TRACING"] = "false"
from cm2_agent import watch
from tests.online.test_watch import LOOKS, QUESTION, app
graph = watch(app(), LOOKS, store={url!r})
for _ in range(20):
    graph.invoke(QUESTION)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(traces(url)) == 20
    assert len(scores(url)) == 20
