"""`cm2 policy list`, `show`, `promote` and `rollback`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent import Policy, SQLStore
from cm2_agent.cli.app import app
from tests.cli_runner import CliRunner


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    with SQLStore(url) as store:
        store.save_policy(Policy(name="desk", version="aa11", folder="start"))
        metrics = {"training": {"steps": 4}, "evaluation": {"gain": 0.25, "p": 0.001, "tasks": 30}}
        data = {"runs": ["round-1"], "rollouts": 96}
        store.save_policy(
            Policy(
                name="desk", version="aa22", parent="aa11", folder="p/1", metrics=metrics, data=data, reward="desk@1"
            )
        )
    return url


def run(url: str, *args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["policy", *args, "--store", url])
    assert result.exit_code == code, result.stderr
    return result


def as_json(url: str, *args: str) -> Any:
    (line,) = run(url, *args, "--json").stdout.splitlines()
    return json.loads(line)


def test_policies_are_listed_shown_promoted_and_rolled_back(url: str) -> None:
    for version in ("aa11", "aa22"):
        run(url, "promote", version)
    listed = run(url, "list").stdout.splitlines()
    assert listed[0].split() == ["agent", "version", "state", "parent", "gain"]
    assert [line.split() for line in listed[1:]] == [
        ["desk", "aa11", "replaced"],
        ["desk", "aa22", "promoted", "aa11", "+0.250"],
    ]
    assert [one["state"] for one in as_json(url, "list", "--name", "desk")["policies"]] == ["replaced", "promoted"]
    shown = as_json(url, "show", "aa2")
    assert (shown["version"], shown["parent"], shown["data"]["rollouts"]) == ("aa22", "aa11", 96)
    assert [one["reason"] for one in shown["promotions"]] == [{"why": "by hand"}]
    text = run(url, "show", "aa22").stdout
    for line in ("policy aa22 of desk: promoted", "evaluation: gain 0.25", "data: rollouts 96", "reward: desk@1"):
        assert line in text
    assert as_json(url, "rollback") == {"name": "desk", "rolled_back": "aa22", "promoted": "aa11", "folder": "start"}
    assert "rolled back" in run(url, "show", "aa22").stdout
    assert "its only promotion" in run(url, "rollback", code=2).stderr


def test_promoting_again_changes_nothing(url: str) -> None:
    assert as_json(url, "promote", "aa22") == {"name": "desk", "promoted": "aa22", "before": None, "folder": "p/1"}
    assert as_json(url, "promote", "aa22")["before"] is None
    assert len(as_json(url, "show", "aa22")["promotions"]) == 1


def test_weights_that_are_gone_are_warned_of(url: str, tmp_path: Path) -> None:
    gone, there = tmp_path / "gone", tmp_path / "there"
    there.mkdir()
    with SQLStore(url) as store:
        store.save_policy(Policy(name="shop", version="bb11", folder=str(gone)))
        store.save_policy(Policy(name="shop", version="bb22", folder=str(there)))
    assert f"warning: {gone} is not there" in run(url, "promote", "bb11").stderr
    assert run(url, "promote", "bb22").stderr == ""
    assert f"warning: {gone} is not there" in run(url, "rollback", "--name", "shop").stderr


def test_what_cannot_be_meant_says_what_to_type(url: str) -> None:
    assert "begins the versions of 2 policies" in run(url, "show", "aa", code=2).stderr
    assert "cm2 policy list" in run(url, "show", "b", code=2).stderr
    assert "has no promotion" in run(url, "rollback", "--name", "shop", code=2).stderr
    with SQLStore(url) as store:
        store.save_policy(Policy(name="shop", version="aa22"))
    assert "name the agent with --name" in run(url, "show", "aa22", code=2).stderr
    assert as_json(url, "show", "aa22", "--name", "shop")["folder"] is None
    assert "policies of 2 agents (desk, shop)" in run(url, "rollback", code=2).stderr


def test_a_store_without_policies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    SQLStore(url).close()
    assert run(url, "list").stdout == "no policies; cm2 loop registers them\n"
    assert "policies of 0 agents (none)" in run(url, "rollback", code=2).stderr
