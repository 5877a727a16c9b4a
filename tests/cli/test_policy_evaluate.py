"""`cm2 policy evaluate` on the lending desk: stored rollouts of its tiny policy, and policies near and far."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cm2_agent.benchmarks.lending_desk.desk import lending_desk
from cm2_agent.cli.app import app
from cm2_agent.compare.collector import collect
from cm2_agent.store import SQLStore
from cm2_agent.types.group import Group
from tests.cli_runner import CliRunner
from tests.compare.small_policies import hasty_policy

pytestmark = pytest.mark.slow

DESK = lending_desk()


def nudged(policy: Path, out: Path, by: float) -> Path:
    """The policy with noise on its weights."""
    shutil.copytree(policy, out)
    weights, noise = load_file(out / "model.safetensors"), torch.Generator().manual_seed(1)
    moved = {name: one + by * torch.randn(one.shape, generator=noise) for name, one in sorted(weights.items())}
    save_file(moved, out / "model.safetensors", metadata={"format": "pt"})
    return out


def mean_reward(groups: Sequence[Group]) -> float:
    return float(np.mean([one.score.lower for group in groups for one in group.rollouts]))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy, policies beside it, and the old one's rollouts: 36 tasks, 4 of each."""
    folder = tmp_path_factory.mktemp("desk")
    old = hasty_policy(folder / "old")
    nudged(old, folder / "near", 0.002)
    nudged(old, folder / "far", 0.1)
    with SQLStore(f"sqlite:///{folder / 'cm2.db'}", create=True) as store:
        for group in collect(DESK, old, DESK.training(0, 2, 36), group=4, seed=3, name="round"):
            for rollout in group.rollouts:
                for run in rollout.trace.runs:
                    store.save_run(run)
                store.save_score(rollout.score)
    return folder


def evaluate(desk: Path, *words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["policy", "evaluate", *words, "--store", f"sqlite:///{desk / 'cm2.db'}"])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done


def test_the_policy_itself_earns_its_own_mean(desk: Path) -> None:
    found = json.loads(evaluate(desk, str(desk / "old"), "--json").stdout)
    assert found["same"]
    assert found["policy"] == found["behaviour"]
    assert (found["rollouts"], found["tasks"], found["left_out"]) == (144, 36, {})
    assert found["effective_share"] == pytest.approx(1)
    assert found["old"]["value"] > 0.02
    for name in ("self_normalised", "doubly_robust"):
        assert found[name]["value"] == pytest.approx(found["old"]["value"], abs=1e-12)
        assert found[name]["gain"] == pytest.approx({"value": 0, "low": 0, "high": 0}, abs=1e-9)


def test_a_policy_near_by_earns_what_is_estimated(desk: Path) -> None:
    done = evaluate(desk, str(desk / "near"), "--json")
    found = json.loads(done.stdout)
    assert not found["same"]
    assert 0.1 < found["effective_share"] < 0.999
    real = mean_reward(collect(DESK, desk / "near", DESK.training(0, 2, 36), group=8, seed=9, name="real"))
    for name in ("self_normalised", "doubly_robust"):
        assert found[name]["low"] <= real <= found[name]["high"]
    lines = evaluate(desk, str(desk / "near")).stdout.splitlines()
    assert lines[0].startswith("144 rollouts of 36 tasks by policy ")
    assert lines[-1].startswith("new policy, doubly robust: ")
    assert "; less the old: " in lines[-1]


def test_what_is_refused_exits_1_with_what_is_known(desk: Path) -> None:
    done = evaluate(desk, str(desk / "far"), "--json", code=1)
    found = json.loads(done.stdout)
    assert found["self_normalised"] is found["doubly_robust"] is None
    assert found["old"]["value"] > 0.02
    assert "expected 10% or more" in found["refused"]
    assert "no estimate of the new policy: the effective sample size is" in done.stderr
    assert "new policy, " not in evaluate(desk, str(desk / "far"), code=1).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--policy", "v9"), "no group of scored rollouts is of --policy v9; there are the policies"),
        (("--reward", "other"), "no scores of reward version 'other'"),
        (("--temperature", "0.3"), "no rollout of 36 groups can be weighed: 144 × sampled at another temperature"),
        (("--agent-name", "sales"), "144 × no step of the agent sales"),
    ],
)
def test_what_cannot_be_meant_exits_2(desk: Path, words: tuple[str, ...], said: str) -> None:
    assert said in evaluate(desk, str(desk / "near"), *words, code=2).stderr


def test_no_policy_there(desk: Path) -> None:
    said = evaluate(desk, str(desk / "gone"), code=2).stderr
    assert "gone" in said
