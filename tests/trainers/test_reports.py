"""What trackers get of a run, what `log_completions` shows and writes, and that a run nobody watches writes nothing."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet  # type: ignore[import-untyped]
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

from cm2_agent.errors import TrainError
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.off_policy import measure_rollouts
from cm2_agent.trainers.sft import SFT
from tests.trainers.loop import SGD, Sampler, logprobs_of, shifted


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What a tracker wrote for TensorBoard: name → step → value."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for file in folder.rglob("events.*"):
        data, at = file.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag][event.step] = value.simple_value
    return found


@pytest.mark.parametrize("weighting", ["decoupled", "direct"])
def test_loss_entropy_clip_share_kl_and_ess_reach_the_tracker(
    weighting: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=4, stale=0.3, version="older")
    args = {"report_to": "tensorboard", "beta": 0.1, **SGD}
    grpo = GRPO(
        policy(1),
        tmp_path / "out",
        tokenizer=tokenizer,
        importance_weighting=weighting,
        steps=4,
        rollouts_per_step=8,
        learning_rate=2.0,
        ratio_band=None,
        args=args,
    )
    grpo.train(groups)
    found = scalars(tmp_path / "out.run")
    history: Any = grpo.report["history"]
    for name in ("loss", "entropy", "clip_ratio/region_mean", "kl"):
        assert [found[f"train/{name}"][step] for step in range(1, 5)] == pytest.approx(
            [one[name] for one in history], abs=1e-6
        ), name
    assert max(one["clip_ratio/region_mean"] for one in history) > 0
    for name in ("grad_norm", "learning_rate", "off_policy/ess_sequence", "off_policy/ess_token"):
        assert sorted(found[f"train/{name}"]) == [1, 2, 3, 4], name
    assert list(found["train/epoch"].values())[:4] == [0.5, 1.0, 1.5, 2.0]
    # The first step, by hand: the policy before it on the rows of two groups.
    data = build_dataset(groups).groups
    model = policy(1)
    with torch.no_grad():
        prox = {id(row): logprobs_of(model, row).numpy() for group in data for row in group.rows}
    pairs = [
        measure_rollouts([[row] for group in (a, b) for row in group.rows], prox, max_weight=2.0)
        for n, a in enumerate(data)
        for b in data[n + 1 :]
    ]
    first = {name: found[f"train/off_policy/{name}"][1] for name in ("ess_sequence", "ess_token", "kl_per_token")}
    assert any(
        all(getattr(one, name) == pytest.approx(value, rel=1e-3) for name, value in first.items()) for one in pairs
    )


def test_a_longer_interval_reports_the_mean(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    args = {"report_to": ["tensorboard"], "logging_steps": 2, "gradient_accumulation_steps": 3}
    grpo = GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=4, learning_rate=1e-2, args=args)
    grpo.train(sample(policy(1), groups=2))
    entropy = scalars(tmp_path / "out.run")["train/entropy"]
    history: Any = grpo.report["history"]
    assert [entropy[2], entropy[4]] == pytest.approx(
        [(history[n]["entropy"] + history[n + 1]["entropy"]) / 2 for n in (0, 2)], abs=1e-6
    )


def test_watching_changes_nothing_and_not_watching_leaves_nothing(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=3)
    weights = []
    for name, args in [
        ("alone", {}),
        ("watched", {"report_to": "tensorboard", "log_completions": True, "save_steps": 2}),
        ("by_pass", {"logging_strategy": "epoch", "save_strategy": "epoch"}),
    ]:
        grpo = GRPO(
            policy(1),
            tmp_path / name,
            tokenizer=tokenizer,
            steps=3,
            rollouts_per_step=8,
            learning_rate=1e-3,
            args=args,
        )
        weights.append((grpo.train(groups) / "model.safetensors").read_bytes())
    assert len(set(weights)) == 1
    assert not (tmp_path / "alone.run").exists()
    assert sorted(one.name for one in (tmp_path / "by_pass.run").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]
    assert sorted(one.name for one in (tmp_path / "watched.run").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]


def test_log_completions_shows_stored_dialogues_with_their_rewards(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = sample(policy(1), groups=2)
    args = {"log_completions": True, "num_completions_to_print": 1, "output_dir": str(tmp_path / "mine")}
    GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=1, args=args).train(groups)
    assert "Step 1" in capsys.readouterr().out
    table = parquet.read_table(tmp_path / "mine" / "completions" / "completions_00001.parquet").to_pylist()
    rewards = {one.trace.id: one.score.reward for group in groups for one in group.rollouts}
    assert sorted(line["trace"] for line in table) == sorted(rewards)
    for line in table:
        assert line["reward"] == rewards[line["trace"]]
        assert line["prompt"].startswith("<|im_start|>user\nWhere is order ")
        assert "\nAnd?<|im_end|>" in line["completion"]
        group = groups[int(line["trace"][1])]
        mean = sum(one.score.reward or 0.0 for one in group.rollouts) / 4
        assert line["advantage"] == pytest.approx(line["reward"] - mean)


@pytest.mark.parametrize("kind", [GRPO, SFT])
def test_a_tracker_that_is_not_there_is_named(
    kind: Any, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    for name, message in (("wandb", "wandb"), ("abacus", "abacus")):
        with pytest.raises(TrainError, match=f"Trainer refused its settings: .*{message}"):
            kind(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=1, args={"report_to": name}).train(
                sample(policy(1), groups=1)
            )
    sft = SFT(policy(1), tmp_path / "sft", tokenizer=tokenizer, steps=2, args={"report_to": "tensorboard"})
    sft.train(sample(policy(1), groups=1))
    assert sorted(scalars(tmp_path / "sft.run")["train/loss"]) == [1, 2]


def test_epochs_are_whole_passes(policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path) -> None:
    """Each rollout is used as often as there are epochs, whatever the batches, loads and what the ratio band leaves."""
    groups = sample(policy(1), groups=5, size=3, stale=0.2, version="older")
    far = shifted(sample(policy(1), groups=1, size=3), 1.0)
    cases: list[tuple[dict[str, Any], int]] = [
        ({"epochs": 1, "rollouts_per_step": 4}, 4),
        ({"epochs": 2, "rollouts_per_step": 100}, 2),
        ({"epochs": 1, "rollouts_per_step": 3, "rollouts_per_load": 7}, 5),
        ({"epochs": 3, "rollouts_per_step": 6, "args": {"num_iterations": 2}}, 18),
        ({"rollouts_per_step": 3, "args": {"num_train_epochs": 1.5}}, 8),
        ({"epochs": 1, "rollouts_per_step": 3, "ratio_band": 1.5, "far": True}, 5),
    ]
    for number, (settings, steps) in enumerate(cases):
        given: dict[str, Any] = {"ratio_band": None, **settings}
        more = far if given.pop("far", False) else []
        passes = {**given.pop("args", {}), "log_completions": True}
        grpo = GRPO(policy(1), tmp_path / str(number), tokenizer=tokenizer, learning_rate=0.0, args=passes, **given)
        grpo.train([*groups, *more])
        assert grpo.report["steps"] == steps
        tables = (tmp_path / f"{number}.run" / "completions").glob("*.parquet")
        times = Counter(name for one in tables for name in parquet.read_table(one)["trace"].to_pylist())
        assert set(times) == {one.trace.id for group in groups for one in group.rollouts}
        expected = settings.get("epochs", 1) * (2 if "num_iterations" in str(settings) else 1)
        if "args" not in settings or "num_iterations" in str(settings):
            assert set(times.values()) == {expected}
        else:  # one pass and a half
            assert set(times.values()) == {1, 2}
