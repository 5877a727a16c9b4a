"""`cm2 traces erase`: what it asks, prints and leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import Result

from cm2_agent.cli.app import app
from cm2_agent.cli.times import age
from cm2_agent.errors import StoreError
from cm2_agent.spool.folder import spool_of
from cm2_agent.spool.record import encode_run
from cm2_agent.spool.replay import join_key
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from tests.cli_runner import CliRunner
from tests.online.stores import run

SECRET = "My passport has the number C01X00T47"


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    with SQLStore(url) as store:
        store.save_run(Run(id="run-one", thread="t1", user="ann@example.org", messages=(Message.of("user", SECRET),)))
        store.save_run(Run(id="run-two", thread="t2", messages=(Message.of("user", "Where is my order?"),)))
    return url


def erase(url: str, *more: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, ["traces", "erase", "--store", url, *more], input=answer)


def test_it_asks_then_erases_and_says_where_it_looked(url: str, tmp_path: Path) -> None:
    refused = erase(url, "--user", "ann@example.org", answer="n\n")
    assert refused.exit_code == 1
    assert "1 traces would be removed: t1" in refused.stderr
    assert SECRET.encode() in (tmp_path / "cm2.db").read_bytes()
    done = erase(url, "--user", "ann@example.org", answer="y\n")
    assert done.exit_code == 0, done.output
    assert "1 traces removed: t1" in done.stdout
    assert f"{tmp_path / 'cm2.db'}: none" in done.stdout
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_a_dry_run_removes_nothing(url: str) -> None:
    done = erase(url, "--thread", "t1", "--dry-run", "--json")
    result = json.loads(done.stdout)
    assert (result["traces"], result["removed"]["runs"], result["searched"]) == (["t1"], 1, [])
    with SQLStore(url) as store:
        assert store.holds("t1")


def test_the_spool_beside_the_store_is_searched(url: str, tmp_path: Path) -> None:
    (tmp_path / "cm2.db.spool").mkdir()
    (tmp_path / "cm2.db.spool" / "7.spool").write_bytes(SECRET.encode())
    done = erase(url, "--thread", "t1", "--yes")
    assert done.exit_code == 1
    assert "7.spool: 1 FOUND" in done.stdout
    assert "some of it is still there" in done.stderr


def test_what_waits_in_the_spool_is_erased_too_and_does_not_come_back(url: str, tmp_path: Path) -> None:
    spool = spool_of(url, None, None)
    assert spool is not None
    spool.prepare()
    for number, user in enumerate(("u", "v"), 1):
        left = replace(run(f"of-{user}", text=f"the words of {user}"), user=user)
        spool.append(number, join_key(None, encode_run(left)))
    spool.leave()
    assert "2 runs of ended processes wait in the spool" in erase(url, "--user", "u", "--dry-run").stderr
    done = erase(url, "--user", "u", "--yes", "--json")
    assert (done.exit_code, json.loads(done.stdout)["found"]) == (0, {})
    assert "of-u" in json.loads(done.stdout)["traces"]
    assert list((tmp_path / "cm2.db.spool").iterdir()) == []
    with SQLStore(url) as store:
        assert [trace.id for trace in store.traces(user="v")] == ["of-v"]
        assert list(store.traces(user="u")) == []


def test_a_whole_project_goes_only_where_it_is_named(url: str) -> None:
    nothing = erase(url, "--yes")
    assert (nothing.exit_code, "nothing was named" in nothing.stderr) == (2, True)
    assert erase(url, "--project", "default", "--yes").exit_code == 0
    with SQLStore(url) as store:
        assert list(store.traces()) == []


def test_ages() -> None:
    assert (age("90d").days, age("12h").total_seconds(), age("2w").days) == (90, 43_200, 14)
    for wrong in ("90", "d", "-1d", "1y", "1.5d"):
        with pytest.raises(StoreError, match="expected a number and w, d, h or m"):
            age(wrong)
