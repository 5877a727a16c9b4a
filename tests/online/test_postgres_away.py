"""A PostgreSQL server that ends every connection and takes no new one: runs wait for it, at the start too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from cm2_agent import watch
from cm2_agent.online.watch import flush
from tests.online.test_watch import LOOKS, QUESTION, app, scores, traces


@pytest.fixture
def allow(postgres_server: str, postgres_url: str) -> Callable[[bool], None]:
    """Whether the database takes connections; those that there are end."""
    name = make_url(postgres_url).database

    def set_to(allowed: bool) -> None:
        engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}"))
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
            )
        engine.dispose()

    return set_to


def test_runs_wait_for_a_server_that_goes_and_comes_back(
    postgres_url: str, allow: Callable[[bool], None], tmp_path: Path
) -> None:
    graph = watch(app(), LOOKS, store=postgres_url, spool=tmp_path / "spool")
    graph.invoke(QUESTION)
    assert flush(300)
    allow(False)
    for _ in range(3):
        assert graph.invoke(QUESTION)["messages"][-1].content == "it is value 1"
    assert not flush(0.2)
    allow(True)
    assert flush(300)
    assert len(traces(postgres_url)) == 4
    assert len(scores(postgres_url)) == 4


@pytest.mark.parametrize("gone", ["DROP SCHEMA public CASCADE", "TRUNCATE traces, contents, reward_versions CASCADE"])
def test_a_database_that_is_made_anew_gets_the_next_runs(
    postgres_url: str, allow: Callable[[bool], None], gone: str, tmp_path: Path
) -> None:
    """What the process remembers of the rows of the one before holds no more."""
    graph = watch(app(), LOOKS, store=postgres_url, spool=tmp_path / "spool")
    graph.invoke(QUESTION)
    assert flush(300)
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text(gone))
        if gone.startswith("DROP"):
            connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    if gone.startswith("TRUNCATE"):  # as a backup that was restored: only the lost connections tell
        allow(False)
        graph.invoke(QUESTION)
        assert not flush(0.2)
        allow(True)
    graph.invoke(QUESTION)
    assert flush(300)
    found = traces(postgres_url)
    assert len(found) == (2 if gone.startswith("TRUNCATE") else 1)
    assert all(trace.messages[-1].text == "it is value 1" for trace in found)
    assert len(scores(postgres_url)) == len(found)


def test_a_server_that_is_away_at_the_start_stops_nobody(
    postgres_url: str, allow: Callable[[bool], None], tmp_path: Path
) -> None:
    allow(False)
    graph = watch(app(), LOOKS, store=postgres_url, spool=tmp_path / "spool")
    assert graph.invoke(QUESTION)["messages"][-1].content == "it is value 1"
    assert not flush(0.2)
    allow(True)
    assert flush(300)
    assert len(scores(postgres_url)) == 1


def test_the_spool_of_a_server_is_in_the_users_state_folder(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    watch(app(), store=postgres_url).invoke(QUESTION)
    assert len(list((tmp_path / "cm2" / "spool").glob("*/*.spool"))) == 1
    monkeypatch.setenv("CM2_SPOOL", str(tmp_path / "given"))
    watch(app(), store=postgres_url, project="other").invoke(QUESTION)
    assert len(list((tmp_path / "given").glob("*.spool"))) == 1
    assert flush(300)
