"""A GRPO run as a whole: does it know its policy, does it learn, is it repeatable, is it harmless when interrupted,
what does it refuse?"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm2_agent.errors import TrainError
from cm2_agent.models.local import fingerprint
from cm2_agent.trainers.batches import shuffled_batches
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.grpo import GRPO
from tests.trainers.loop import (
    SGD,
    Sampler,
    apart,
    claimed_by,
    logprobs_of,
    plain_loop,
    rows_of_groups,
    shifted,
    trained,
)

# -- what the run knows of its policy


def test_stored_calls_are_recomputed_and_must_match(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    groups = sample(model, groups=7, size=4)
    grpo = GRPO(copy.deepcopy(model), tmp_path / "out", tokenizer=tokenizer, steps=1, learning_rate=1e-3)
    grpo.train(groups)
    assert grpo.report["recomputed"]["calls"] == 50
    assert grpo.report["recomputed"]["max_abs"] < 1e-4
    assert grpo.report["fresh"] is True
    wrong = [replace(group, key={**group.key, "policy": fingerprint(model)}) for group in shifted(groups, 0.01)]
    claimed = [
        replace(
            group,
            rollouts=tuple(replace(one, trace=claimed_by(one.trace, fingerprint(model))) for one in group.rollouts),
        )
        for group in wrong
    ]
    with pytest.raises(TrainError, match=r"stored logprobs are not this policy's: 50 calls.*mean \|difference\| 0\.01"):
        GRPO(copy.deepcopy(model), tmp_path / "refused", tokenizer=tokenizer, steps=1).train(claimed)
    assert not (tmp_path / "refused").exists()
    tolerant = GRPO(copy.deepcopy(model), tmp_path / "tolerant", tokenizer=tokenizer, steps=1, tolerance=0.1)
    tolerant.train(claimed)
    assert tolerant.report["fresh"] is False
    assert tolerant.report["off_policy"]["ratio_mean"] == pytest.approx(math.exp(-0.01), rel=1e-3)


def test_a_truncated_sampler_is_weighted_and_not_taken_for_the_policy(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    grpo = GRPO(model, tmp_path / "out", tokenizer=tokenizer, steps=1, ratio_band=None)
    grpo.train(sample(model, groups=2, top_k=5))
    assert grpo.report["recomputed"] is None
    assert (
        grpo.report["off_policy"]["ratio_max"] < 1
    )  # what is cut off makes the rest more likely for the sampler than for the model


def test_each_load_takes_its_own_pi_prox(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """Two loads of one group each: the second is weighted and clipped against the policy after the first."""
    model = policy(1)
    groups = sample(model, groups=2, stale=0.3, version="older")
    grpo = GRPO(
        copy.deepcopy(model),
        tmp_path / "out",
        tokenizer=tokenizer,
        steps=2,
        learning_rate=2.0,
        rollouts_per_load=4,
        rollouts_per_step=4,
        ratio_band=None,
        args=SGD,
    )
    path = grpo.train(groups)
    batches = shuffled_batches(build_dataset(groups).groups, 4, seed=0, epoch=0)
    by_task = {group.task_id: group for group in groups}
    order = [by_task[str(group.key["task"])] for batch in batches for group in batch]
    expected = [
        plain_loop(model, rows_of_groups([group]), importance_weighting="decoupled", steps=1, lr=2.0)[0]
        for group in order
    ]
    assert [step["loss"] for step in grpo.report["history"]] == pytest.approx(expected, abs=1e-5)
    assert apart(trained(path), model) < 1e-5


# -- the run as a whole


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=6)
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        path = GRPO(
            policy(1),
            tmp_path / name,
            tokenizer=tokenizer,
            seed=seed,
            epochs=2,
            rollouts_per_step=8,
            learning_rate=1e-3,
        ).train(groups)
        files.append((path / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_it_learns_from_a_folder_into_a_folder(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    groups = sample(model, groups=6)
    seen: list[tuple[int, int]] = []
    grpo = GRPO(tmp_path / "start", tmp_path / "out", epochs=4, rollouts_per_step=12, learning_rate=3e-3)
    path = grpo.train(groups, progress=lambda step, total, metrics: seen.append((step, total)))
    assert seen == [(step, 8) for step in range(1, 9)]
    better = trained(path)

    def likelihood(which: Any, sign: int) -> float:
        rows = [row for row in rows_of_groups(groups) if row.spans[0].advantage * sign > 0]
        return float(np.mean([float(logprobs_of(which, row).mean()) for row in rows]))

    with torch.no_grad():
        assert likelihood(better, 1) > likelihood(model, 1) + 0.02
        assert likelihood(better, -1) < likelihood(model, -1) - 0.02
    report = json.loads((path / "report.json").read_text())
    assert report == grpo.report
    assert report["steps"] == 8
    assert report["off_policy"]["kl_per_token"] == 0 < report["off_policy_after"]["kl_per_token"]
    assert report["policy"] == {
        "behaviour": [fingerprint(model)],
        "before": fingerprint(model),
        "after": fingerprint(better),
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "start"]
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(path).encode("order 7") == tokenizer.encode("order 7")


def test_a_model_in_memory_is_handed_back_as_a_plain_model(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1).eval()
    groups = sample(model, groups=2)
    for number in range(2):
        GRPO(
            model,
            tmp_path / str(number),
            tokenizer=tokenizer,
            steps=1,
            learning_rate=1e-3,
            policy_version="any",
            ratio_band=None,
        ).train(groups)
    assert "forward" not in vars(model)
    assert not model.training
    assert apart(trained(tmp_path / "1"), model) == 0.0


def test_an_interrupt_leaves_everything_as_it_was(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=2)
    out = tmp_path / "out"
    GRPO(policy(1), out, tokenizer=tokenizer, steps=1).train(groups)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def interrupt(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    for target in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            GRPO(policy(1), target, tokenizer=tokenizer, steps=3, learning_rate=0.1, overwrite=True).train(
                groups, progress=interrupt
            )
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_grpo_config_decides_alone(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    from trl import GRPOConfig

    groups = sample(policy(1), groups=2)
    config = GRPOConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=3,
        learning_rate=0.5,
        optim="sgd",
        max_grad_norm=0.0,
        bf16=False,
        report_to="none",
        activation_checkpointing=False,
        num_generations=4,
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        epsilon_high=0.28,
        logging_strategy="no",
        dataloader_pin_memory=False,
        save_strategy="no",
        disable_tqdm=True,
        beta=0.0,
    )
    twin = policy(1)
    plain_loop(twin, rows_of_groups(groups), importance_weighting="decoupled", steps=3, lr=0.5)
    path = GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, args=config).train(groups)
    assert apart(trained(path), twin) < 1e-5
    with pytest.raises(TrainError, match="learning_rate and a GRPOConfig were both given"):
        GRPO(policy(1), tmp_path / "no", tokenizer=tokenizer, learning_rate=1.0, args=config).train(groups)
    with pytest.raises(TrainError, match=r"args say temperature 1\.0, the stored logprobs are of temperature 0\.5"):
        GRPO(policy(1), tmp_path / "no", tokenizer=tokenizer, args=config).train(
            sample(policy(1), groups=2, temperature=0.5)
        )


# -- refusals


def test_settings_that_cannot_be_meant_are_refused(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    for wrong, message in [
        ({"importance_weighting": "sideways"}, "expected 'decoupled' .* or 'direct'"),
        ({"steps": 1, "epochs": 1}, "both given"),
        ({"steps": 0}, "steps 0; expected at least 1"),
        ({"max_weight": 0.5}, "max_weight 0.5"),
        ({"ratio_band": 1.0}, "ratio_band"),
        ({"max_lag": 1}, "max_lag needs versions"),
    ]:
        with pytest.raises(TrainError, match=message):
            GRPO("m", tmp_path / "out", **wrong)  # type: ignore[arg-type]
    groups = sample(policy(1), groups=1)
    for args, message in [
        ({"args": {"no_such_setting": 1}}, "GRPOConfig refused its settings"),
        ({"args": {"loss_type": "foo"}}, "loss_type 'foo'; expected one of grpo, bnpo, "),
        ({"args": {"epsilon": "abc"}}, "epsilon 'abc'; expected a number, for example 0.2"),
        ({"args": {"epsilon_high": "abc"}}, "epsilon_high 'abc'; expected a number, for example 0.28"),
        ({"args": {"learning_rate": 1.0}, "learning_rate": 1.0}, "learning_rate: given both"),
        ({"args": [1]}, "args is a list"),
        ({"level": "sentence"}, "sentence"),
    ]:
        with pytest.raises(TrainError, match=message):
            GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, **args).train(groups)  # type: ignore[arg-type]
    with pytest.raises(TrainError, match="there is no folder"):
        GRPO(tmp_path / "nowhere", tmp_path / "out").train(groups)
    with pytest.raises(TrainError, match="without its tokenizer"):
        GRPO(policy(1), tmp_path / "out").train(groups)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(TrainError, match="exists and is not a trained policy"):
        GRPO(policy(1), tmp_path / "mine", tokenizer=tokenizer).train(groups)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
