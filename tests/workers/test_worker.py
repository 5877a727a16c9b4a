"""Scoring by workers on a real PostgreSQL: jobs come with their traces, and each trace gets one score."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from procrastinate.schema import SchemaManager
from sqlalchemy import create_engine, make_url, text

from cm2_agent import Checklist, Item, Message, Run
from cm2_agent.cli.app import app
from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.rewards.judges.client import openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.store import SQLStore
from cm2_agent.types.score import Score
from cm2_agent.workers.job_tables import _note as note
from cm2_agent.workers.job_tables import _run as run_script
from cm2_agent.workers.job_tables import install, upgrade_jobs
from cm2_agent.workers.ledger import QueueLedger
from cm2_agent.workers.queue import ScoringQueue
from cm2_agent.workers.status import QueueStatus, statuses
from cm2_agent.workers.worker import Done, ScoringWorker
from tests.chat_server import Reply, last_message
from tests.cli_runner import CliRunner
from tests.judge_server import Asked, Fault, JudgeServer, honest

CHECKED = Checklist(Item("tells", check={"reply_matches": "shipped"}), name="checked")
JUDGED = Checklist(Item("answers", "Is the question answered?", turn="each"), name="judged")
PRICE = Price(input=1.0, output=1.0)


@pytest.fixture
def store(postgres_url: str) -> Iterator[SQLStore]:
    with SQLStore(postgres_url) as made:
        install(made.database)
        yield made


def dialogue(number: int, *, thread: str | None = None, ended: int | None = None) -> Run:
    ended = time.time_ns() if ended is None else ended
    messages = (
        Message.of("user", f"Where is order {number}?"),
        Message.of("assistant", f"Order {number} was shipped."),
    )
    return Run(id=f"r{number}", thread=thread, messages=messages, started=ended - 1, ended=ended)


class Office:
    """One reward's queue in a store, and workers for it."""

    def __init__(self, store: SQLStore, checklist: Checklist = CHECKED, url: str | None = None, **limits: Any) -> None:
        self.store, self.checklist, self.url = store, checklist, url
        self.ledger = QueueLedger(store.database)
        self.reward = self.scorer().version
        self.queue = ScoringQueue(store, self.reward)
        self.ledger.queue = self.queue.name
        store.save_checklist(checklist)
        self.queue.open(limits)

    def scorer(self) -> ChecklistScorer:
        if self.url is None:
            return ChecklistScorer(self.checklist)
        model = openai_judge_model(self.url, "stub", api_key="test")
        limits = RateLimits(concurrency=16, budget_usd=1.0, ledger=self.ledger)
        judge = LLMJudge(model, price=PRICE, limits=limits, retries=0, cache=self.store.verdict_cache())
        return ChecklistScorer(self.checklist, judge=judge)

    def worker(self, **more: Any) -> ScoringWorker:
        return ScoringWorker(
            store=self.store, queue=self.queue, scorer=self.scorer, **{"drain": True, "concurrency": 4, **more}
        )

    def work(self, **more: Any) -> Done:
        return asyncio.run(self.worker(**more).run())

    @property
    def status(self) -> QueueStatus:
        return next(one for one in statuses(self.store) if one.reward == self.reward)

    def scores(self) -> dict[str, float | None]:
        return {one.trace_id: one.reward for one in self.store.scores(reward=self.reward)}


def jobs(store: SQLStore) -> list[tuple[int, str, bool]]:
    with store.database.reading() as connection:
        query = "SELECT priority, status::text, (args ->> 'again')::bool FROM procrastinate_jobs ORDER BY id"
        return [tuple(row) for row in connection.execute(text(query))]


def test_a_trace_that_is_committed_is_a_job_and_no_other(store: SQLStore) -> None:
    office = Office(store)
    store.save_runs([dialogue(1), dialogue(2, ended=10**9)])
    assert sorted(jobs(store)) == [(0, "todo", False), (10, "todo", False)]
    with pytest.raises(ConflictError):
        store.save_runs([dialogue(3), replace(dialogue(1), name="other content")])
    assert len(jobs(store)) == 2
    assert (office.status.live, office.status.bulk, office.status.workers) == (1, 1, 0)
    assert office.work() == Done(scored=2)
    assert office.scores() == {"r1": 1.0, "r2": 1.0}
    assert jobs(store) == []


def test_a_trace_that_grows_or_changes_is_scored_again(store: SQLStore) -> None:
    office = Office(store)
    for number in (1, 2):
        store.save_runs([dialogue(number, thread="t")])
        assert office.work() == Done(scored=1)
    assert [one.runs for one in store.score_history("t", reward=office.reward)] == [1, 2]
    late = (Message.of("user", "Where is order 2?"), Message.of("assistant", "Nobody knows."))
    store.replace_run(replace(dialogue(2, thread="t"), messages=late))
    assert jobs(store) == [(10, "todo", True)]
    assert office.work() == Done(scored=1)
    assert [one.runs for one in store.score_history("t", reward=office.reward)] == [1, 2]
    assert office.scores() == {"t": 0.5}


def test_what_was_stored_before_is_scored_after_what_is_new(store: SQLStore) -> None:
    store.save_runs([dialogue(number) for number in (1, 2, 3)])
    with JudgeServer() as judge:
        office = Office(store, JUDGED, judge.base_url)
        scored = Score(trace_id="r4", reward_version=office.reward, reward=0.5, runs=1)
        store.save_dialogue([dialogue(4)], score=scored)
        store.save_runs([dialogue(5)])
        assert [office.queue.enqueue_missing(), office.queue.enqueue_missing()] == [3, 0]
        assert office.work(concurrency=1) == Done(scored=4, known=1)
        asked = [re.findall(r"order (\d)\?", one.text) for one in judge.asked]
    assert asked == [["5"], ["1"], ["2"], ["3"]]
    assert office.scores() == {"r1": 1.0, "r2": 1.0, "r3": 1.0, "r4": 0.5, "r5": 1.0}
    assert office.queue.enqueue_missing() == 0


def test_jobs_of_another_reward_stay_for_its_workers(store: SQLStore) -> None:
    one, other = Office(store), Office(store, Checklist(Item("calls", check={"called": "look"}), name="other"))
    store.save_runs([dialogue(1)])
    assert one.work() == Done(scored=1)
    assert (other.scores(), other.status.live) == ({}, 1)
    assert other.queue.close() == 1
    store.save_runs([dialogue(2)])
    assert (one.status.live, other.status.live, other.status.active) == (1, 0, False)


def test_what_a_killed_worker_had_is_done_by_another_once(store: SQLStore) -> None:
    office = Office(store)
    store.save_runs([dialogue(1), dialogue(2)])
    with store.database.writing() as connection:  # what a kill -9 leaves, before and after the score was stored
        connection.execute(
            text("SELECT procrastinate_fetch_job_v2(ARRAY[:queue]::varchar[], procrastinate_register_worker_v1())"),
            {"queue": office.queue.name},
        )
    assert office.queue.retry_stalled(60) == 0
    assert office.status.running == 1
    (first,) = store.traces(ids=["r1"])
    store.save_score(asyncio.run(office.scorer()(first)))
    with store.database.writing() as connection:
        connection.execute(text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute'"))
    assert office.work() == Done(scored=1, known=1)
    assert office.scores() == {"r1": 1.0, "r2": 1.0}


def test_a_dead_judge_parks_its_jobs_and_nothing_is_burnt(store: SQLStore) -> None:
    with JudgeServer(faults=[Fault(status=503)] * 9) as judge:
        office = Office(store, JUDGED, judge.base_url)
        store.save_runs([dialogue(number) for number in range(6)])
        done = office.work(rest=300.0)
        assert "the judge does not answer" in (done.parked or "")
        assert (done.scored, done.set_aside, office.scores()) == (0, 0, {})
        status = office.status
        assert (status.live, status.running, status.set_aside) == (6, 0, 0)
        assert status.parked == done.parked
        assert any(line.startswith("  PARKED, tried again in") for line in status.lines())
        office.queue.unpark()
        assert office.work(rest=0.0) == Done(scored=6)  # one try after the other, until it answers
        assert office.status.parked is None
        assert set(office.scores().values()) == {1.0}


def test_a_judge_that_is_refused_is_asked_no_more(store: SQLStore) -> None:
    with JudgeServer(faults=[Fault(status=401)] * 9) as judge:
        office = Office(store, JUDGED, judge.base_url)
        store.save_runs([dialogue(number) for number in range(3)])
        assert "refused by its provider" in (office.work(rest=300.0, concurrency=1).parked or "")
        assert (office.scores(), office.status.live, len(judge.faults)) == ({}, 3, 8)


def test_a_trace_that_the_judge_fails_at_is_set_aside(store: SQLStore) -> None:
    def fails_at_two(asked: Asked) -> Reply:
        return Fault(status=500) if "order 2" in asked.text else honest(asked)

    with JudgeServer(fails_at_two) as judge:
        office = Office(store, JUDGED, judge.base_url)
        store.save_runs([dialogue(number) for number in range(5)])
        done = office.work(rest=0.0, concurrency=1)
        assert (done.scored, done.parked) == (4, None)
        assert (done.set_aside, office.status.set_aside) == (1, 1)
        assert "it failed at this trace 3 times" in (office.status.aside_for or "")
        judge.judge = honest
        assert office.queue.enqueue_missing() == 1
        assert office.work() == Done(scored=1)
        assert office.status.set_aside == 0


def test_all_workers_keep_to_one_budget(store: SQLStore) -> None:
    with JudgeServer() as judge:
        office = Office(store, JUDGED, judge.base_url, budget_usd=0.0015)
        store.save_runs([dialogue(number) for number in range(12)])

        async def three() -> list[Done]:
            return await asyncio.gather(*(office.worker(rest=300.0).run() for _ in range(3)))

        done = asyncio.run(three())
        spent = (sum(len(last_message(body)) // 4 for body in judge.bodies) + judge.output_tokens) / 1e6
        assert 0 < spent <= 0.0015
        assert office.status.spent_usd == pytest.approx(spent)
        assert office.status.calls == judge.calls == sum(one.scored for one in done) == len(office.scores())
        assert "the workers' budget of 0.0015 USD is spent" in (office.status.parked or "")
        office.queue.open({"budget_usd": 1.0})
        assert office.status.parked is None
        office.work()
        assert (len(office.scores()), judge.calls) == (12, 12)


def test_a_worker_outlives_its_database(store: SQLStore, postgres_server: str, postgres_url: str) -> None:
    """Every connection ends while the judge is asked: what it answered is not stored, nor lost."""
    name = make_url(postgres_url).database

    def ends_connections(asked: Asked) -> Reply:
        if len(judge.asked) == 3:
            engine = create_engine(postgres_server)
            with engine.connect() as connection:
                ended = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
                connection.execute(ended, {"name": name})
            engine.dispose()
        return honest(asked)

    with JudgeServer(ends_connections) as judge:
        office = Office(store, JUDGED, judge.base_url)
        store.save_runs([dialogue(number) for number in range(6)])
        done = office.work(lease=1.0)
        assert (done.set_aside, done.parked) == (0, None)
        assert office.scores() == {f"r{number}": 1.0 for number in range(6)}
        assert jobs(store) == []


def test_the_command_works_and_says_what_it_does(store: SQLStore, postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "checked.yaml").write_text("name: checked\nitems:\n  - {id: replies, check: {replied: true}}\n")
    store.save_runs([dialogue(1), dialogue(2)])

    def typed(*words: str) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(app, ["work", *words, "--store", postgres_url, "--json"])
        return done.exit_code, json.loads(done.stdout.splitlines()[-1])

    for enqueued in (2, 0):
        code, result = typed(str(tmp_path / "checked.yaml"), "--drain", "--concurrency", "2")
        assert (code, result["enqueued"], result["scored"], result["parked"]) == (0, enqueued, enqueued, None)
    code, found = typed("--status")
    (status,) = found["rewards"]
    assert (code, status["reward"], status["scored_last_minute"]) == (0, result["reward"], 2)
    assert typed("--retire", result["reward"]) == (0, {"reward": result["reward"], "dropped": 0})
    shown = CliRunner().invoke(app, ["work", "--status", "--store", postgres_url]).stdout
    assert shown.splitlines()[:2] == [
        f"{result['reward']}  (retired)",
        "  jobs: 0 live, 0 bulk, 0 running, 0 set aside",
    ]
    refused = CliRunner().invoke(app, ["work", "--retire", "none", "--store", postgres_url])
    assert (refused.exit_code, "workers score by checked@1" in refused.stderr) == (2, True)


def test_sqlite_has_no_workers(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    SQLStore(url).close()
    refused = CliRunner().invoke(app, ["work", "--status", "--store", url])
    assert refused.exit_code == 2
    assert "workers need PostgreSQL" in refused.stderr
    assert "cm2 score CHECKLIST.yaml" in refused.stderr


def test_a_rate_is_booked_for_all(store: SQLStore) -> None:
    office = Office(store, rpm=60.0, tpm=60_000.0)
    first, other = QueueLedger(store.database), QueueLedger(store.database)
    first.queue = other.queue = office.queue.name
    waits = [ledger.reserve(500, 0.0).seconds for ledger in (first, other, first)]
    assert waits == sorted(waits)
    assert waits[0] == 0.0
    assert 1.0 < waits[2] <= 2.0  # two calls before it, a second each
    late = other.reserve(0, 0.25)
    other.settle(late, 6000, 0.5)  # five seconds of tokens more than were reserved
    assert first.reserve(1, 0.0).seconds > 4.0
    first.give_back(first.reserve(0, 9.0))
    assert (office.status.calls, office.status.spent_usd) == (5, 0.5)


def test_other_tables_of_procrastinate_are_upgraded_or_left_alone(postgres_url: str) -> None:
    folder = Path(SchemaManager.get_migrations_path())
    steps = sorted(path.name for path in folder.glob("*.sql"))
    old = steps[: steps.index("03.02.00_50_post_batch_defer_jobs.sql") + 1]
    with SQLStore(postgres_url) as store:
        for step in old:
            with store.database.writing() as connection:
                run_script(connection, (folder / step).read_text(encoding="utf-8"))
        with pytest.raises(StoreError, match=r"another application's procrastinate, older than 3\.4"):
            install(store.database)
        with store.database.writing() as connection:
            note(connection, old[-1])
        upgrade_jobs(postgres_url)
        install(store.database)
        office = Office(store)
        store.save_runs([dialogue(1)])
        assert office.work() == Done(scored=1)
