"""The quickstart end to end, made small: every part is the real one, only the numbers of steps and tasks are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.datasets.control_rewards import outcome_alone, shuffled_scores
from cm2_agent.errors import StoreError
from cm2_agent.quickstart.config import CONFIG, Config
from cm2_agent.quickstart.pipeline import Quickstart

SMALL: Config = replace(
    CONFIG,
    cold_start=replace(CONFIG.cold_start, drill_steps=20, steps=40, demonstrations=80),
    rounds=replace(CONFIG.rounds, rounds=2, tasks=8, group=4, steps=2, batch=16),
)
KEYS = {
    "before",
    "after",
    "rounds",
    "heldout",
    "temperature",
    "seconds",
    "cpu_seconds",
    "peak_rss_mb",
    "traces",
    "store",
}


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What the same seed must give again; times and paths are not among it."""
    return {key: result[key] for key in ("before", "after", "rounds", "traces")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Quickstart, dict[str, Any]]:
    quickstart = Quickstart(3, tmp_path_factory.mktemp("quickstart"), config=SMALL, heldout=12)
    return quickstart, quickstart.run()


@pytest.mark.slow
def test_every_promised_key_is_there_and_every_dialogue_is_stored(finished: tuple[Quickstart, dict[str, Any]]) -> None:
    quickstart, result = finished
    assert set(result) >= KEYS
    assert result["traces"] == 2 * 8 * 4 + 4 * 12
    assert json.loads((quickstart.out / "result.json").read_text()) == result
    assert (quickstart.out / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    assert all((quickstart.policy(number) / "model.safetensors").exists() for number in range(3))
    assert [entry["rollouts"] for entry in result["rounds"]] == [32, 32]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_an_interrupted_run_goes_on(
    finished: tuple[Quickstart, dict[str, Any]], tmp_path: Path
) -> None:
    class Enough(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "round 2" and done == total:
            raise Enough

    with pytest.raises(Enough):
        Quickstart(3, tmp_path, config=SMALL, heldout=12, progress=stop).run()
    again = Quickstart(3, tmp_path, config=SMALL, heldout=12)
    assert again.store.health()["traces"] > 0
    result = again.run()
    assert result["resumed"] is True
    assert numbers(result) == {**numbers(finished[1]), "rounds": result["rounds"]}
    for mine, theirs in zip(result["rounds"], finished[1]["rounds"], strict=True):
        assert (mine["success"], mine["reward"]) == (theirs["success"], theirs["reward"])


@pytest.mark.slow
def test_a_finished_folder_is_refused_and_left_alone(finished: tuple[Quickstart, dict[str, Any]]) -> None:
    quickstart, result = finished
    with pytest.raises(StoreError, match="finished quickstart"):
        Quickstart(3, quickstart.out, config=SMALL)
    assert json.loads((quickstart.out / "result.json").read_text()) == result


def test_a_folder_begun_with_another_seed_is_refused(tmp_path: Path) -> None:
    Quickstart(1, tmp_path, config=SMALL)
    with pytest.raises(StoreError, match="another seed"):
        Quickstart(2, tmp_path, config=SMALL)


@pytest.mark.slow
def test_controls_permute_within_groups_and_keep_nulls(finished: tuple[Quickstart, dict[str, Any]]) -> None:
    groups = finished[0].groups(1)
    assert len(groups) == 8
    mixed = shuffled_scores(groups, 3)
    for group, other in zip(groups, mixed, strict=True):
        assert [rollout.trace.id for rollout in group.rollouts] == [rollout.trace.id for rollout in other.rollouts]
        rewards = [[str(rollout.score.reward) for rollout in one.rollouts] for one in (group, other)]
        assert sorted(rewards[0]) == sorted(rewards[1])
    assert any(
        [rollout.score.reward for rollout in group.rollouts] != [rollout.score.reward for rollout in other.rollouts]
        for group, other in zip(groups, mixed, strict=True)
    )
    for group in outcome_alone(groups):
        assert all(rollout.score.reward == rollout.trace.outcomes["success"] for rollout in group.rollouts)
