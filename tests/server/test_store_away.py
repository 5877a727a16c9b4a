"""A disk that is full and a database that is locked: nothing acknowledged is lost, nothing grows, clients wait."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.event import listens_for

pytest.importorskip("opentelemetry.proto", reason='needs the extra: pip install "cm2-agent[server]"')

from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.incidents import Incidents
from cm2_agent.server.decoded import Decoded
from cm2_agent.server.intake import Intake, Outcome, Received
from cm2_agent.server.settings import Settings
from cm2_agent.store import SQLStore
from cm2_agent.store.received import ReceivedSpans
from tests.server.crashing import stored_spans
from tests.server.exported import dialogue, protobuf
from tests.server.running import collecting


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as opened:
        yield opened


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_disk_is_said_and_survived(store: SQLStore) -> None:
    pages = [1 << 30]

    @listens_for(store.database.engine, "checkout")
    def limit(connection: Any, record: Any, proxy: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages[0]}")  # SQLite's own end of the disk

    dialogues = [dialogue(f"d{number}", calls=3) for number in range(6)]
    with collecting(store, Settings(quiet=3600.0)) as running:
        assert running.send(protobuf(dialogues[0])).status_code == 200
        pages[0] = 1  # it cannot be fewer than there are
        answers = [running.send(protobuf(one * 20)) for one in dialogues]
        refused = [number for number, answer in enumerate(answers) if answer.status_code == 503]
        assert refused
        assert all(answers[number].headers["Retry-After"] == "1" for number in refused)
        running.collector.flush(0.2)  # there may be room left for a run, or not
        assert running.client.get("/healthz").status_code == 200
        pages[0] = 1 << 30
        assert [running.send(protobuf(dialogues[number])).status_code for number in refused] == [200] * len(refused)
        running.flush()
    assert stored_spans(store) == {(span["trace"], span["span"]): 1 for one in dialogues for span in one}


def test_a_locked_database_makes_clients_wait_and_then_come_again_later(store: SQLStore, tmp_path: Path) -> None:
    bodies = [protobuf(dialogue(f"d{number}", calls=3)) for number in range(24)]
    limits = Settings(quiet=3600.0, most_waiting=8 * len(bodies[0]))
    answers: list[httpx.Response] = []
    before = set(threading.enumerate())
    with collecting(store, limits) as running:
        other = sqlite3.connect(tmp_path / "cm2.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        def send(body: bytes) -> None:
            headers = {"Content-Type": "application/x-protobuf"}
            answers.append(httpx.post(f"{running.address}/v1/traces", content=body, headers=headers, timeout=120))

        clients = [threading.Thread(target=send, args=(body,)) for body in bodies]
        for client in clients:
            client.start()
        wait_for(lambda: len(answers) >= 12)  # those that found no room
        assert (429, "1") in {(answer.status_code, answer.headers["Retry-After"]) for answer in answers}
        begun = set(threading.enumerate()) - before
        assert len([thread for thread in begun if thread.name.startswith("cm2-")]) == 2
        assert running.client.get("/healthz").status_code == 200
        other.execute("COMMIT")
        other.close()
        for client in clients:
            client.join()
        assert {answer.status_code for answer in answers} - {503} == {200, 429}  # 503: the lock was waited for too long
        assert [running.send(body).status_code for body in bodies] == [200] * len(bodies)
        running.flush()
    found = stored_spans(store)
    assert len(found) == 24 * 6
    assert set(found.values()) == {1}


def test_no_transaction_holds_more_than_it_may_and_no_request_costs_another(store: SQLStore) -> None:
    came: list[Received] = []
    intake = Intake(ReceivedSpans(store), came.extend, Incidents(), most_waiting=1 << 40)
    answers: dict[int, Outcome] = {}
    all_there = threading.Event()

    def decode(number: int) -> Decoded:
        if number == 0:
            assert all_there.wait(60)  # so that the others are taken together
        value: Any = 1 << 70 if number == 3 else "x"
        span = SpanRecord(trace_id=f"{number + 1:032x}", span_id="1" * 16, attributes={"a": value})
        return Decoded(spans=[span], size=20 << 20)

    for number in range(6):
        intake.put("default", partial(decode, number), 100, partial(answers.__setitem__, number))
    all_there.set()
    assert intake.close(60)
    assert [answers[number].status for number in range(6)] == [200, 200, 200, 400, 200, 200]
    assert [one.trace[-1] for one in came] == ["1", "2", "3", "5", "6"]
    assert max(Counter(one.batch for one in came).values()) <= 2  # 32 MiB, or one more than fit
    assert not intake.is_full
