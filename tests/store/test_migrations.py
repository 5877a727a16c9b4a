"""Stores of earlier revisions: after an upgrade their rows read as they were stored, and saving the same again changes
nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store import HEAD, SQLStore, migrate, upgrade
from cm2_agent.store.engine import Database
from cm2_agent.store.schema import metadata
from cm2_agent.types.human_labels import Label
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from tests.store.test_schema import at_revision

STORED: dict[str, Any] = json.loads(Path(__file__).with_name("rows_0005.json").read_text(encoding="utf-8"))
"""What version 0.1 stored at revision 0005, and what it read back."""


def store_rows(url: str, revision: str) -> None:
    """A store of that revision with as much of the rows as its tables take."""
    at_revision(url, revision)
    engine = create_engine(url)
    with engine.begin() as connection:
        there = inspect(connection)
        for table in metadata.sorted_tables:
            if not there.has_table(table.name):
                continue
            columns = {column["name"]: column["type"] for column in there.get_columns(table.name)}
            for row in STORED["rows"].get(table.name, []):
                values = {
                    name: bytes.fromhex(value["hex"])
                    if isinstance(value, dict)
                    else bool(value)
                    if str(columns[name]) == "BOOLEAN" and value is not None
                    else value
                    for name, value in row.items()
                    if name in columns
                }
                names = ", ".join(f'"{name}"' for name in values)
                marks = ", ".join(f":{name}" for name in values)
                connection.execute(text(f"INSERT INTO {table.name} ({names}) VALUES ({marks})"), values)
        if not url.startswith("sqlite"):
            for name in ("traces", "runs", "group_keys"):
                connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{name}', 'seq'), 100)"))
    engine.dispose()


@pytest.mark.parametrize("revision", migrate.REVISIONS[:-1])
def test_rows_of_every_earlier_revision_read_as_they_were(store_url: str, revision: str) -> None:
    store_rows(store_url, revision)
    assert upgrade(store_url) == HEAD
    traces = {id: Trace.from_json(data) for id, data in STORED["traces"].items()}
    with SQLStore(store_url) as store:
        assert store.projects() == ["default"]
        assert {trace.id: trace for trace in store.traces()} == traces
        assert [store.save_trace(trace) for trace in traces.values()] == [False, False]
        with pytest.raises(ConflictError):
            store.save_run(Run(id="run-1", thread="thread-1"))
        store.save_run(Run(id="run-4", thread="thread-1", user="u", started=30))
        assert [trace.id for trace in store.traces(user="u")] == ["thread-1"]
        if revision >= "0002":
            score = Score.from_json(STORED["score"])
            assert store.score("thread-1") == score
            assert list(store.scores()) == [score]
        if revision >= "0004":
            assert store.labels() == [Label(trace_id="thread-1", item="a", rater="ann", value=True, turn=0)]
            assert store.labelled_tasks() == {"thread-1": "order"}
        if revision >= "0005":
            found = store.checkpointer().get_tuple({"configurable": {"thread_id": "thread-9"}})
            assert found is not None
            assert found.pending_writes == [("task-1", "answer", "yes")]
            assert len(SQLStore(store_url, project="other").checkpointer()) == 0


def test_rows_that_refer_to_nothing_stop_the_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    store_rows(url, "0005")
    engine = create_engine(url)
    with engine.begin() as connection:  # without foreign keys, as the sqlite3 shell has it
        connection.execute(text("DELETE FROM traces WHERE id = 'run-3'"))
    engine.dispose()
    with pytest.raises(StoreError, match="a row of runs refers to no row of traces; nothing was changed"):
        upgrade(url)
    database = Database(url)
    with database.reading() as connection:
        assert migrate.revision_of(connection, url) == "0005"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    database.close()
