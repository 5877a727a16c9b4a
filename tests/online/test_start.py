"""`watch` at the start of an application: it starts, whatever the store says, and has one writer for each."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from cm2_agent import Checklist, Item, View, watch
from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.online.watch import flush
from cm2_agent.rewards import openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.store import SQLStore
from tests.judge_server import FREE, JudgeServer
from tests.online.test_watch import ASKED, LOOKS, QUESTION, app, scores, traces


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cm2.db'}"


def looks(view: View) -> bool:
    """Is something looked up?"""
    return view.called("look") is not None


def changed(view: View) -> bool:
    """Is something looked up?"""
    return bool(view.called("look"))  # another text


def test_a_hundred_calls_share_one_writer(url: str) -> None:
    watch(app(), LOOKS, store=url).invoke(QUESTION)
    assert flush(300)
    process = psutil.Process()
    threads, descriptors = threading.active_count(), process.num_fds()
    for _ in range(100):
        watch(app(), LOOKS, store=url).invoke(QUESTION)
    assert flush(300)
    assert len(traces(url)) == 101
    assert len(scores(url)) == 101
    assert threading.active_count() <= threads + 2
    assert process.num_fds() <= descriptors + 10


def test_graphs_of_one_store_are_scored_each_by_its_own_checklist(url: str) -> None:
    other = Checklist(Item("replies", check={"reply_matches": "value"}), name="other")
    first, second, third = watch(app(), LOOKS, store=url), watch(app(), other, store=url), watch(app(), store=url)
    config: Any = [{"configurable": {"thread_id": name}} for name in "abc"]
    first.invoke(QUESTION, config[0])
    second.invoke(QUESTION, config[1])
    third.invoke(QUESTION, config[2])
    assert flush(300)
    with SQLStore(url) as store:
        found = [store.score(name) for name in "abc"]
    assert [[verdict.item for verdict in score.verdicts] for score in found if score is not None] == [
        ["looks"],
        ["replies"],
    ]


def test_a_project_is_a_store_of_its_own(url: str) -> None:
    config: Any = {"configurable": {"thread_id": "1"}}
    watch(app(), store=url).invoke(QUESTION, config)
    watch(app(), store=url, project="shop").invoke(QUESTION, config)
    assert flush(300)
    with SQLStore(url) as store, SQLStore(url, project="shop") as shop:
        assert [len(trace.runs) for trace in (*store.traces(), *shop.traces())] == [1, 1]


def test_a_store_that_cannot_be_opened_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder of the database is not there, as where a volume is mounted late."""
    url, spool = f"sqlite:///{tmp_path}/late/cm2.db", tmp_path / "spool"
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        graph = watch(app(), LOOKS, store=url, spool=spool)
        for _ in range(3):
            assert graph.invoke(QUESTION)["messages"][-1].content == "it is value 1"
        assert not flush(0.1)
    assert [record.message[:46] for record in caplog.records] == ["the store is away, and runs wait for it: Store"]
    assert sum(path.stat().st_size for path in spool.iterdir()) > 1000
    (tmp_path / "late").mkdir()
    assert flush(300)
    assert len(traces(url)) == 3
    assert len(scores(url)) == 3


def test_a_locked_file_at_the_start(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SQLStore(url).close()
    lock = sqlite3.connect(tmp_path / "cm2.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        graph = watch(app(), LOOKS, store=url)
    assert [record.message[:31] for record in caplog.records] == ["the store has not answered for "]
    graph.invoke(QUESTION)
    lock.execute("ROLLBACK")
    lock.close()
    assert flush(300)
    assert len(scores(url)) == 1


def test_a_file_of_a_newer_version_is_waited_for(url: str, tmp_path: Path) -> None:
    SQLStore(url).close()
    with sqlite3.connect(tmp_path / "cm2.db") as file:
        file.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="9999"):
        watch(app(), store=url, strict=True)
    graph = watch(app(), store=url)
    graph.invoke(QUESTION)
    assert not flush(0.1)
    for path in tmp_path.glob("cm2.db*"):
        if path.is_file():
            path.unlink()
    assert flush(300)
    assert len(traces(url)) == 1


def test_a_changed_check_is_a_later_version(url: str, caplog: pytest.LogCaptureFixture) -> None:
    def checklist(check: Any) -> Checklist:
        return Checklist(Item("looks", check=check), name="looks")

    for _ in range(2):
        with caplog.at_level(logging.WARNING, "cm2_agent"):
            watch(app(), checklist(looks), store=url).invoke(QUESTION)
            watch(app(), checklist(changed), store=url).invoke(QUESTION)
        assert flush(300)
    assert [record.message for record in caplog.records if "under version 2" in record.message] != []
    with SQLStore(url) as store:
        assert len(store.reward_versions()) == 2
        newest = store.checklist("looks")
        assert newest is not None
        assert newest.version == 2
        assert store.checklist("looks", 1) is not None
    assert len(scores(url)) == 4
    with pytest.raises(ConflictError, match="give the changed checklist version: 2"):
        watch(app(), checklist(changed), store=url, strict=True, spool=Path(url[10:]).parent / "other")


def test_a_store_that_comes_back_empty_gets_the_checklist_too(url: str, tmp_path: Path) -> None:
    graph = watch(app(), LOOKS, store=url)
    graph.invoke(QUESTION)
    assert flush(300)
    for path in tmp_path.glob("cm2.db*"):
        if path.is_file():
            path.unlink()
    graph.invoke(QUESTION)
    assert flush(300)
    with SQLStore(url) as store:
        assert store.checklist(LOOKS.hash) is not None


def test_a_store_that_is_replaced_gets_the_judges_verdicts(url: str, tmp_path: Path) -> None:
    with JudgeServer() as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE)
        graph = watch(app(), ASKED, judge=judge, sample=1.0, budget_usd=0, store=url)
        for _ in range(2):
            graph.invoke(QUESTION)
            assert flush(300)
            with SQLStore(url) as store:
                (score,) = store.scores()
                assert [verdict.value for verdict in score.verdicts] == [True, True]
                assert len(store.verdict_cache()) > 0
            for path in tmp_path.glob("cm2.db*"):
                if path.is_file():
                    path.unlink()
    assert server.calls == 2


def test_the_spool_of_a_graph_that_is_refused_goes_again(url: str, tmp_path: Path) -> None:
    with SQLStore(url) as store:
        store.save_checklist(LOOKS)
    other = Checklist(Item("other", check={"called": "x"}), name="looks")
    with pytest.raises(ConflictError):
        watch(app(), other, store=url, strict=True)
    assert not (tmp_path / "cm2.db.spool").exists()
