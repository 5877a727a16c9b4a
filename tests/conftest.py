"""Databases for tests: `store_url` is a fresh SQLite file, then a fresh database on a real PostgreSQL server.

The server is the one that `CM2_TEST_POSTGRES` names (a URL of a role that may create databases), or one started here
with the programs of an installed PostgreSQL; tests are skipped, saying so, where neither is to be had."""

from __future__ import annotations

import gc
import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text

from tests import fuzzing

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


def _program(name: str) -> str | None:
    found = shutil.which(name)
    return found or max(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), default=None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running server."""
    given = os.environ.get("CM2_TEST_POSTGRES")
    if given:
        yield given
        return
    initdb, control = _program("initdb"), _program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip(
            "no PostgreSQL: set CM2_TEST_POSTGRES to a server's URL, or install one (apt-get install postgresql)"
        )
    folder = Path(tempfile.mkdtemp(prefix="cm2-pg-"))
    user: str | None = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "postgres"
        shutil.chown(folder, user, user)

    def call(*command: str) -> None:
        done = subprocess.run(command, user=user, group=user, cwd=folder, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")

    try:
        call(initdb, "-D", str(folder / "data"), "-U", "cm2", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        call(control, "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://cm2@/postgres?host={folder}"
        finally:
            call(control, "-D", str(folder / "data"), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
