"""A comparison from end to end, made small: it asserts that every number is there and comes again, and no ranking."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cm2_agent.benchmarks.lending_desk.desk import lending_desk
from cm2_agent.cli.app import build
from cm2_agent.compare.arms import ARMS
from cm2_agent.compare.claim import claim
from cm2_agent.compare.collector import collect
from cm2_agent.compare.comparison import Comparison, repeat
from cm2_agent.compare.experiment import Experiment
from cm2_agent.compare.manifest import comparable
from cm2_agent.compare.picture import draw
from cm2_agent.compare.training import Budget, train
from cm2_agent.errors import StoreError, TrainError
from cm2_agent.types.json_file import write_json
from tests.compare.small_policies import hasty_policy

DESK = lending_desk()
SMALL = Experiment(
    turns=2,
    start="full",
    arms=("sft-trajectory", "grpo-turn"),
    rounds=2,
    tasks=4,
    group=4,
    steps=2,
    evaluated=6,
    tuning=(901,),
    cold_starts=(0,),
    samplings=(0,),
    learning_rates=1,
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hasty_policy(tmp_path_factory.mktemp("policy") / "hasty")


def folder(path: Path, policy: Path) -> Path:
    """A folder whose cold starts are there already: a hasty policy learns in seconds what a cold start takes minutes
    for."""
    for seed in (*SMALL.tuning, *SMALL.cold_starts):
        shutil.copytree(policy, path / "starts" / str(seed))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> tuple[Comparison, dict[str, Any]]:
    comparison = Comparison(DESK, SMALL, folder(tmp_path_factory.mktemp("comparison"), policy))
    return comparison, comparison.run()


@pytest.mark.slow
def test_every_cell_has_its_file_and_its_row_in_the_manifest(finished: tuple[Comparison, dict[str, Any]]) -> None:
    comparison, found = finished
    assert found["left"] == 0
    assert set(found["arms"]) == set(SMALL.arms)
    results = comparison.results
    assert len(results) == 4
    listed = json.loads((comparison.out / "manifest.json").read_text())
    assert [row["key"] for row in listed["rows"]] == sorted(results)
    for row in listed["rows"]:
        where = row["provenance"]
        assert {"commit", "code", "checklist", "reward", "training_tasks", "seeds", "grid", "hardware"} <= set(where)
        assert row["figures"]["sampled_tokens"] > 0
    assert not (comparison.out / "work").exists() or not any((comparison.out / "work").iterdir())
    picture = draw(found, comparison.out / "comparison.svg")
    assert picture is not None
    assert picture.read_text().count("grpo-turn") >= 1


@pytest.mark.slow
def test_two_processes_share_the_cells_of_one_folder(
    finished: tuple[Comparison, dict[str, Any]], tmp_path: Path, policy: Path
) -> None:
    out = folder(tmp_path, policy)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        summaries = list(pool.map(_run, [out, out]))
    assert [found["left"] for found in summaries] == [0, 0]
    alone, shared = finished[0].results, Comparison(DESK, SMALL, out).results
    assert {key: comparable(result) for key, result in shared.items()} == {
        key: comparable(result) for key, result in alone.items()
    }
    assert not any((out / "work").iterdir())


def _run(out: Path) -> dict[str, Any]:
    return Comparison(DESK, SMALL, out).run()


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["sft-turn", "grpo-turn", "dpo"])
def test_a_round_that_diverges_costs_its_tokens_and_leaves_the_policy_as_it_is(
    tmp_path: Path, policy: Path, arm: str
) -> None:
    groups = collect(DESK, policy, DESK.training(1, 2, 3), group=4, seed=0, name="one")
    found = train(
        ARMS[arm], policy, tmp_path / "out", groups, learning_rate=3.0, budget=Budget(steps=3, tokens=4000), seed=0
    )
    assert found.skipped is not None
    assert found.skipped.startswith("diverged: ")
    assert found.steps == 3
    assert found.tokens > 0
    assert not (tmp_path / "out").exists()


def test_a_claim_is_one_process_s_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "cell"
    with claim(path) as mine:
        assert mine
        with claim(path) as again:
            assert not again
    with claim(path) as mine:
        assert mine


@pytest.mark.slow
def test_arms_begin_alike_draw_as_many_tokens_and_train_on_as_many(
    finished: tuple[Comparison, dict[str, Any]],
) -> None:
    results = [result for key, result in finished[0].results.items() if key.startswith("test")]
    first, second = results
    assert first["before"] == second["before"]
    assert first["rounds"][0]["collected"] == second["rounds"][0]["collected"]
    for result in results:
        for one in result["rounds"]:
            budget = one["budget"]["tokens"]
            assert one["trained"]["skipped"] is not None or abs(one["trained"]["tokens"] / budget - 1) < 0.25
    assert abs(first["sampled_tokens"] / second["sampled_tokens"] - 1) < 0.35  # whole groups of few


@pytest.mark.slow
def test_a_cell_that_was_cut_off_goes_on_and_comes_to_the_same_numbers(
    finished: tuple[Comparison, dict[str, Any]], policy: Path, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if "grpo" in what and what.endswith("round 2: training"):
            raise Killed

    out = folder(tmp_path, policy)
    with pytest.raises(Killed):
        Comparison(DESK, SMALL, out, kill).run()
    rounds = list((out / "work").glob("*/round-1.json"))
    assert len(rounds) == 1
    Comparison(DESK, SMALL, out).run(most=1)
    key = rounds[0].parent.name
    assert comparable(Comparison(DESK, SMALL, out).results[key]) == comparable(finished[0].results[key])


@pytest.mark.slow
def test_a_row_of_the_manifest_can_be_made_again(
    finished: tuple[Comparison, dict[str, Any]], policy: Path, tmp_path: Path
) -> None:
    rows = json.loads((finished[0].out / "manifest.json").read_text())["rows"]
    row = next(row for row in rows if row["cell"]["stage"] == "test" and row["cell"]["arm"] == "sft-trajectory")
    assert repeat(DESK, row, SMALL, folder(tmp_path, policy)) == {}
    row["provenance"]["checklist"] = "another"
    with pytest.raises(TrainError, match="the checklist was 'another'"):
        repeat(DESK, row, SMALL, tmp_path)


def test_a_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    Comparison(DESK, SMALL, tmp_path)
    Comparison(DESK, SMALL, tmp_path)
    with pytest.raises(StoreError, match="another experiment"):
        Comparison(DESK, Experiment(turns=3), tmp_path)


def test_what_a_killed_process_left_unfinished_is_no_result(tmp_path: Path) -> None:
    comparison = Comparison(DESK, SMALL, tmp_path)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / ".test-x.json.7").write_text('{"cell":')
    assert comparison.results == {}
    write_json(tmp_path / "cells" / "test-x.json", {"cell": 1})
    assert comparison.results == {"test-x": {"cell": 1}}


def test_the_command_says_what_it_does_not_know(tmp_path: Path) -> None:
    app = build(["compare", "show"])
    refused = CliRunner().invoke(app, ["compare", "--out", str(tmp_path), "--start", "perfect"])
    assert refused.exit_code == 2
    assert "start 'perfect'" in refused.output
    (tmp_path / "manifest.json").write_text("[]")
    refused = CliRunner().invoke(app, ["repro", str(tmp_path / "manifest.json"), "--out", str(tmp_path / "again")])
    assert refused.exit_code == 2
    assert "not a manifest" in refused.output
    (tmp_path / "manifest.json").write_text(json.dumps({"experiment": SMALL.to_json(), "rows": []}))
    refused = CliRunner().invoke(app, ["repro", str(tmp_path / "manifest.json"), "--out", str(tmp_path)])
    assert refused.exit_code == 2
    assert "the folder of the comparison itself" in " ".join(refused.output.split())
