"""`cm2 spool` and what `cm2 doctor` says of it: runs that were answered and not stored, until they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cm2_agent.cli.app import app
from cm2_agent.spool.files import Spool
from cm2_agent.spool.folder import spool_of
from cm2_agent.spool.record import encode_run
from cm2_agent.spool.replay import join_key
from cm2_agent.store import SQLStore
from tests.cli_runner import CliRunner
from tests.online.stores import run


def cm2(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def leave(url: str, project: str | None, *names: str, folder: str | None = None) -> Spool:
    """What an ended process leaves."""
    spool = spool_of(url, project, folder)
    assert spool is not None
    spool.prepare()
    for number, name in enumerate(names, 1):
        spool.append(number, join_key(None, encode_run(run(name))))
    spool.leave()
    return spool


def test_runs_of_ended_processes_are_shown_and_saved_each_in_its_project(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    SQLStore(url).close()
    leave(url, None, "a", "b")
    leave(url, "shop", "c")
    code, found = cm2("doctor", "--store", url)
    assert code == 1
    assert any("3 runs of ended processes wait" in one and "cm2 spool replay" in one for one in found["problems"])
    _, shown = cm2("spool", "show", "--store", url)
    assert (shown["runs"], shown["projects"]) == (3, {"default": 2, "shop": 1})
    assert cm2("spool", "replay", "--store", url) == (0, {"saved": 3, "unreadable": 0, "torn_files": 0, "missing": 0})
    with SQLStore(url) as store, SQLStore(url, project="shop") as shop:
        assert [trace.id for trace in store.traces()] == ["a", "b"]
        assert [trace.id for trace in shop.traces()] == ["c"]
    assert cm2("spool", "show", "--store", url)[1]["runs"] == 0
    assert cm2("spool", "replay", "--store", url)[1]["saved"] == 0


def test_a_folder_of_its_own_and_a_store_without_a_spool(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    folder = str(tmp_path / "elsewhere")
    leave(url, None, "a", folder=folder)
    assert cm2("spool", "show", "--store", url)[1]["runs"] == 0
    assert cm2("spool", "replay", "--store", url, "--spool", folder)[1]["saved"] == 1
    assert cm2("spool", "show", "--store", "sqlite://")[1]["folder"] is None


def test_a_run_that_the_store_refuses_is_put_aside_with_its_reason(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    with SQLStore(url) as store:
        store.save_run(run("a", text="other content"))
    spool = leave(url, None, "a", "b")
    assert cm2("spool", "replay", "--store", url)[1]["saved"] == 1
    (line,) = (Path(spool.folder) / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert "ConflictError" in json.loads(line)["reason"]
    assert json.loads(line)["run"]["id"] == "a"
    assert cm2("spool", "show", "--store", url)[1]["refused_runs"] == 1
