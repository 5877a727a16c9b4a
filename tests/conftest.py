"""Databases for tests: `store_url` is a fresh SQLite file, then a fresh database on a real PostgreSQL server.

The server is the one that `CM2_TEST_POSTGRES` names (a URL of a role that may create databases), or one started here
with the programs of an installed PostgreSQL; tests are skipped, saying so, where neither is to be had."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text

from tests import fuzzing
from tests.postgres_server import PostgresServer

fuzzing.register_profiles()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests run in one process, so that what it prepares is prepared once. Documents and recipes need nothing
    of each other: each may run in any process. (`--dist loadgroup` would do; its groups are lost on pytest 9.2, whose
    items do not let xdist 3.8 rename them.)"""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return nodeid if file.endswith("/test_docs.py") else file

    return ByFile(config, log)


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """Take what lives when a file begins out of the collector's sight: torch and transformers alone are some million
    objects, and each training run has all garbage collected (accelerate's `free_memory`)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running server."""
    given = os.environ.get("CM2_TEST_POSTGRES")
    if given:
        yield given
        return
    if not PostgresServer.is_installed():
        pytest.skip(
            "no PostgreSQL: set CM2_TEST_POSTGRES to a server's URL, or install one (apt-get install postgresql)"
        )
    with PostgresServer() as server:
        yield server.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    name = f"cm2_{uuid4().hex[:12]}"
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh, empty database: each test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'cm2.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
