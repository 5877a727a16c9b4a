"""`cm2 loop` on the lending desk with a policy that was made in seconds: its stages, its rows, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent import SQLStore, save_tasks
from cm2_agent.benchmarks.lending_desk import desk as lending
from cm2_agent.cli.app import app
from tests.cli_runner import CliRunner
from tests.compare.small_policies import hasty_policy

APP = """
from cm2_agent.benchmarks.lending_desk.app import build_graph
from cm2_agent.benchmarks.lending_desk.desk import lending_desk

world, verify = lending_desk().open, lending_desk().verify
"""
CHECKLIST = Path(lending.__file__).with_name("lending.yaml")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hasty_policy(tmp_path_factory.mktemp("start") / "policy", steps=60)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    desk = lending.lending_desk()
    save_tasks(desk.training(0, 1, 4), tmp_path / "train.jsonl")
    save_tasks(desk.training(1, 1, 7), tmp_path / "promotion.jsonl")
    save_tasks(desk.heldout(0, 1, 3), tmp_path / "test.jsonl")
    (tmp_path / "reading_room.py").write_text(APP, encoding="utf-8")
    return tmp_path


def arguments(files: Path, start: Path, **more: str) -> list[str]:
    options = {
        "out": str(files / "loop"),
        "model": str(start),
        "agent": f"{files}/reading_room.py:build_graph",
        "context": f"{files}/reading_room.py:world",
        "verify": f"{files}/reading_room.py:verify",
        "promotion-tasks": str(files / "promotion.jsonl"),
        "test-tasks": str(files / "test.jsonl"),
        "checklist": str(CHECKLIST),
        "checks": "cm2_agent.benchmarks.lending_desk.checks",
        "name": "desk",
        "rounds": "2",
        "group": "3",
        "evaluations": "1",
        "answer-tokens": "24",
        "steps": "1",
        "learning-rate": "1e-4",
        "store": f"sqlite:///{files / 'cm2.db'}",
        **more,
    }
    given = [text for name, value in options.items() for text in (f"--{name}", value) if value]
    allowed = [text for tool in lending.lending_desk().tools for text in ("--allow-real", tool.name)]
    return ["loop", str(files / "train.jsonl"), *given, *allowed]


def run(files: Path, start: Path, *extra: str, code: int = 0, **more: Any) -> Any:
    result = CliRunner().invoke(app, [*arguments(files, start, **more), *extra])
    assert result.exit_code == code, result.output
    return result


def test_a_loop_runs_and_repeats_itself(files: Path, start: Path) -> None:
    first = run(files, start, "--json")
    (line,) = first.stdout.splitlines()
    found = json.loads(line)
    assert [one["round"] for one in found["rounds"]] == [1, 2]
    assert found["tokens"] > 0
    assert found["test"]["tasks"] == 3
    for stage in ("run", "score", "train", "evaluate", "promote"):
        assert f"round 2: {stage}: finished" in first.stderr
    with SQLStore(f"sqlite:///{files / 'cm2.db'}") as store:
        rows = store.policies("desk")
        assert len(rows) == 1 + sum(one["candidate"] is not None for one in found["rounds"]) > 1
        assert rows[1].settings == {
            "algorithm": "grpo",
            "lora": None,
            "steps": 1,
            "learning_rate": 1e-4,
            "set": [],
        }
        assert Path(str(rows[1].folder), "model.safetensors").is_file()
        assert rows[1].metrics["training"]["steps"] == 1
        dialogues = len(list(store.scores()))
    again = run(files, start, "--json")
    assert json.loads(again.stdout) == found
    assert "finished" not in again.stderr
    with SQLStore(f"sqlite:///{files / 'cm2.db'}") as store:
        assert len(list(store.scores())) == dialogues
    text = run(files, start, model="").stdout  # without --model: the policy that this loop began with
    assert text.startswith("round 1: kept; gain ")
    assert "nothing was promoted" in text
    assert f"promoted policy of desk: {found['promoted']}" in text
    assert "left out" not in text
    found["rounds"][0]["left_out"] = 2
    (files / "loop" / "result.json").write_text(json.dumps(found), encoding="utf-8")
    assert "expected; 2 tasks left out\n" in run(files, start).stdout


def test_the_same_seed_gives_the_same_loop(files: Path, start: Path) -> None:
    found = []
    for name in ("one", "two"):
        store = f"sqlite:///{files / name}.db"
        result = run(files, start, "--json", out=str(files / name), store=store, rounds="1")
        found.append(json.loads(result.stdout))
    for one in found:
        for part in (one, *one["rounds"]):
            part.pop("seconds")
    assert found[0] == found[1]


def test_what_cannot_be_meant_is_refused_before_anything_is_done(files: Path, start: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"test-tasks": ""}, "belong together"),
        ({"test-tasks": str(files / "promotion.jsonl")}, "judged by what it was trained on"),
        ({"rounds": "4"}, "fewer than 10 cannot show"),
        ({"set": "no_such=1"}, "takes no 'no_such'"),
        ({"algorithm": "ppo"}, "algorithm 'ppo' is unknown"),
        ({"model": ""}, "no policy of 'desk' is promoted"),
        ({"alpha": "2"}, "expected 1 or more, and a share"),
        ({"budget-usd": "1"}, "needs a judge"),
    )
    for more, words in cases:
        assert words in run(files, start, code=2, **more).stderr, more
        assert not (files / "loop" / "round-1").exists()
    refused = run(files, start, "--require-certificate", code=2).stderr
    assert "it has no certificate" in refused


def test_one_file_is_split(files: Path, start: Path) -> None:
    save_tasks(lending.lending_desk().training(2, 1, 30), files / "train.jsonl")
    shares = {"promotion-share": "0.3", "test-share": "0.2"}
    split: dict[str, Any] = {"promotion-tasks": "", "test-tasks": "", "rounds": "1", **shares}
    found = json.loads(run(files, start, "--json", "--tasks-per-round", "2", **split).stdout)
    assert 5 <= found["rounds"][0]["tasks"] <= 9
    assert 1 <= found["test"]["tasks"] <= 6
