"""`cm2 lint`: files, libraries and stores; exit 1 where a counterfeit is paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist_library import shipped_libraries
from tests.cli_runner import CliRunner
from tests.rewards.linting.test_lint import trace

CARELESS = """
name: careless
items:
  - id: calls_little
    check: {at_most: 3}
  - id: looks_up
    check: {called: get_order}
    weight: 3
"""
PARAMETERS = {
    "confirmation-before-write": ["--parameter", "writes=[cancel_order]"],
    "error-recovery": ["--parameter", "tool=cancel_order"],
}


def cm2(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["lint", *arguments])
    return result.exit_code, result.output


def careless(folder: Path) -> str:
    path = folder / "careless.yaml"
    path.write_text(CARELESS, encoding="utf-8")
    return str(path)


def test_a_counterfeit_that_is_paid_fails(tmp_path: Path) -> None:
    code, text = cm2(careless(tmp_path))
    assert code == 1
    assert "silence" in text
    assert "0.25 is paid (calls_little)" in text
    code, text = cm2(careless(tmp_path), "--max-reward", "1", "--json")
    assert code == 0
    assert json.loads(text)["passed"]


def test_a_store_adds_real_dialogues(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    with SQLStore(url) as store:
        for number in range(20):
            store.save_trace(trace(f"t{number}", found=True))
    code, text = cm2(careless(tmp_path), "--store", url, "--json")
    found: dict[str, Any] = json.loads(text)
    assert code == 1
    kinds = {one["kind"]: one["reward"] for one in found["paid"]}
    assert kinds["the replies without the calls"] == 0.25
    assert {one["code"] for one in found["findings"] if one["item"] == "looks_up"} >= {"saturated"}
    with SQLStore(url) as store:
        assert store.reward_versions() == []  # nothing was stored


@pytest.mark.parametrize("name", shipped_libraries())
def test_the_shipped_libraries_pass(name: str) -> None:
    code, text = cm2(f"cm2:{name}", *PARAMETERS.get(name, []))
    assert code == 0, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cm2:nowhere"], "there is no library"),
        (["cm2:error-recovery"], "needs the parameter tool"),
        (["cm2:grounding", "--parameter", "weight"], "expected NAME=VALUE"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_cannot_be_read_is_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["lint", *arguments])
    assert result.exit_code != 0
    assert message in f"{result.output}{result.exception}"
