"""Every field of the installed GRPOConfig stands in exactly one table; what is refused is refused, what is passed
arrives, and what is ours has a test of its effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig, SFTConfig

from cm2_agent.errors import TrainError
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.grpo_fields import OURS, PASSED, REFUSED
from cm2_agent.trainers.trl_config import grpo_config
from cm2_agent.types.group import Group
from tests.trainers.loop import Sampler

TABLES = (PASSED, OURS, REFUSED)
NAMES = [spec.name for spec in fields(GRPOConfig)]
# Values for fields whose default says nothing of what they may be.
OTHER: dict[str, Any] = {
    "loss_type": "bnpo",
    "accelerator_config": {"split_batches": True},
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_persistent_workers": False,
    "dataloader_pin_memory": False,
    "dataloader_prefetch_factor": None,
    "debug": "underflow_overflow",
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "fp16": False,
    "fsdp": "full_shard",
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "log_level": "info",
    "log_level_replica": "error",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "lr_scheduler_type": "linear",
    "metric_for_best_model": "loss",
    "optim": "sgd",
    "optim_args": "a=1",
    "optim_target_modules": ["q_proj"],
    "parallelism_config": {"cp_size": 2},
    "tf32": None,
    "torch_empty_cache_steps": 5,
}


def other(name: str) -> Any:
    """A value that is not TRL's default."""
    if name in OTHER:
        return OTHER[name]
    value = getattr(GRPOConfig(bf16=False, use_cpu=True), name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and not isinstance(value, Enum):
        return value + 1
    return "something"


def test_every_field_stands_in_exactly_one_table() -> None:
    for name in NAMES:
        assert sum(name in one for one in TABLES) == 1, name
    assert {name for one in TABLES for name in one} == set(NAMES)
    assert all(text for one in TABLES for text in one.values())


@pytest.mark.parametrize("name", REFUSED)
def test_refused_fields_are_refused_with_the_reason_and_their_default_is_not(name: str) -> None:
    with pytest.raises(TrainError) as refused:
        GRPO("m", "out", args={name: other(name)})
    assert str(refused.value).startswith(f"{name} {other(name)!r} was given and cannot be meant: {REFUSED[name]}")
    GRPO("m", "out", args={name: getattr(GRPOConfig(bf16=False), name)})


def test_cispo_bounds_the_ratio_itself() -> None:
    def made(args: Any) -> Any:
        return grpo_config(GRPO("m", "out", args=args), 1.0, Path("scratch"))

    cpu: dict[str, Any] = {"use_cpu": True, "bf16": False}
    assert made({**cpu}).epsilon_high == 0.28
    assert made({**cpu, "loss_type": "cispo"}).epsilon_high == 5.0
    assert made({**cpu, "loss_type": "cispo", "epsilon_high": 3.0}).epsilon_high == 3.0
    assert made(GRPOConfig(loss_type="cispo", epsilon_high=4.0, **cpu)).epsilon_high == 4.0
    for args in ({**cpu, "loss_type": "cispo", "epsilon_high": 0.28}, GRPOConfig(loss_type="cispo", **cpu)):
        with pytest.raises(
            TrainError, match=r"bounds the ratio itself by epsilon_high, and that is .* for example 5\.0"
        ):
            made(args)


@pytest.mark.parametrize("name", PASSED)
def test_passed_fields_arrive(name: str) -> None:
    value = other(name)
    made = grpo_config(GRPO("m", "out", args={"use_cpu": True, name: value}), 1.0, Path("scratch"))
    found = getattr(made, name)
    if name == "debug":
        (found,) = found
    assert (found.value if isinstance(found, Enum) else found) == value


def test_names_that_are_no_fields_are_refused_with_what_was_meant() -> None:
    with pytest.raises(TrainError, match=r"learning_rat 1 was given, and it has no such field; did you mean learning"):
        GRPO("m", "out", args={"learning_rat": 1})
    with pytest.raises(TrainError, match="args is a SFTConfig; expected a GRPOConfig"):
        GRPO("m", "out", args=SFTConfig(bf16=False, use_cpu=True))


def test_a_grpo_config_is_checked_like_a_dict() -> None:
    plain = GRPOConfig(bf16=False, use_cpu=True, activation_checkpointing=False)
    GRPO("m", "out", args=plain)
    with pytest.raises(TrainError, match=r"top_p 0\.5 was given and cannot be meant: nothing is generated"):
        GRPO("m", "out", args=GRPOConfig(bf16=False, use_cpu=True, activation_checkpointing=False, top_p=0.5))


# -- ours


def test_scale_rewards_is_norm(policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path) -> None:
    groups = sample(policy(1), groups=2)

    def loss(name: str, **settings: Any) -> float:
        grpo = GRPO(policy(1), tmp_path / name, tokenizer=tokenizer, steps=1, **settings)
        grpo.train(groups)
        return float(grpo.report["history"][0]["loss"])

    scaled, plain = loss("std", norm="std"), loss("none")
    assert scaled != plain
    assert loss("group", args={"scale_rewards": "group"}) == loss("true", args={"scale_rewards": True}) == scaled
    assert loss("no", args={"scale_rewards": "none"}) == loss("false", args={"scale_rewards": False}) == plain
    refused: list[tuple[dict[str, Any], str]] = [
        ({"args": {"scale_rewards": "batch"}}, "scale_rewards 'batch'; expected 'group'"),
        ({"args": {"scale_rewards": "none"}, "norm": "std"}, "scale_rewards means norm 'none', and norm 'std'"),
        ({"args": {"scale_rewards": "group"}, "credits": list}, "scale_rewards means norm 'std', and credits"),
    ]
    for wrong, message in refused:
        with pytest.raises(TrainError, match=message):
            GRPO("m", "out", **wrong)


def cut(group: Group, *places: int) -> Group:
    """The group with the token limit as the end of these rollouts' first answers."""

    def one(number: int, rollout: Any) -> Any:
        if number not in places:
            return rollout
        first, *rest = rollout.trace.runs
        runs = (replace(first, calls=(replace(first.calls[0], finish_reason="length"),)), *rest)
        return replace(rollout, trace=replace(rollout.trace, runs=runs))

    return replace(group, rollouts=tuple(one(number, rollout) for number, rollout in enumerate(group.rollouts)))


def test_mask_truncated_completions_leaves_out_what_was_cut(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """The loss is that of the other rollouts, with advantages from all of them: cut ones count in the mean."""
    groups = [cut(group, 0, 3) for group in sample(policy(1), groups=2)]
    reports = []
    for name, args in (("all", {}), ("masked", {"mask_truncated_completions": True})):
        grpo = GRPO(policy(1), tmp_path / name, tokenizer=tokenizer, steps=1, args=args)
        grpo.train(groups)
        reports.append(grpo.report)
    assert reports[0]["left_out"] == {}
    assert reports[1]["left_out"] == {"the token limit cut an answer": 4}
    by_hand = []
    for group in groups:
        rewards = [one.score.reward for one in group.rollouts]
        mean = sum(value for value in rewards if value is not None) / len(rewards)
        for one, reward in zip(group.rollouts, rewards, strict=True):
            if one.trace.runs[0].calls[0].finish_reason != "length":
                tokens = sum(len(call.completion_ids or ()) for run in one.trace.runs for call in run.calls)
                by_hand.append((tokens, (reward or 0.0) - mean))
    expected = -sum(tokens * advantage for tokens, advantage in by_hand) / sum(tokens for tokens, _ in by_hand)
    assert reports[1]["history"][0]["loss"] == pytest.approx(expected, abs=1e-5)


def test_num_generations_must_be_the_groups_own(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=1)
    GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=1, args={"num_generations": 4}).train(groups)
    with pytest.raises(TrainError, match="num_generations 8 was given, and the group of task 'task-0' holds 4"):
        GRPO(policy(1), tmp_path / "no", tokenizer=tokenizer, args={"num_generations": 8}).train(groups)


def test_seed_and_epochs_are_the_keywords(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=6)

    def weights(name: str, **settings: Any) -> bytes:
        grpo = GRPO(
            policy(1), tmp_path / name, tokenizer=tokenizer, rollouts_per_step=8, learning_rate=1e-3, **settings
        )
        return (grpo.train(groups) / "model.safetensors").read_bytes()

    assert weights("a", seed=3, epochs=2) == weights("b", args={"seed": 3, "num_train_epochs": 2})
    assert weights("c", seed=4) != weights("d", args={"seed": 3})
    for settings, message in [
        ({"seed": 4, "args": {"seed": 3}}, "seed 4 and args with seed 3 were given"),
        ({"epochs": 2, "args": {"num_train_epochs": 3}}, "num_train_epochs: given both as a keyword and in args"),
    ]:
        with pytest.raises(TrainError, match=message):
            weights("no", **settings)


def test_temperature_beta_and_delta_have_their_own_meaning(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=2, temperature=0.5)
    with pytest.raises(TrainError, match=r"args say temperature 0\.7, the stored logprobs are of temperature 0\.5"):
        GRPO(policy(1), tmp_path / "no", tokenizer=tokenizer, args={"temperature": 0.7}).train(groups)
    grpo = GRPO(policy(1), tmp_path / "kl", tokenizer=tokenizer, steps=2, learning_rate=1e-2, args={"beta": 0.5})
    grpo.train(groups)
    assert [one["kl"] > 0 for one in grpo.report["history"]] == [False, True]
    direct = grpo_config(GRPO("m", "out", importance_weighting="direct", max_weight=3.0), 1.0, Path("scratch"))
    assert (direct.delta, grpo_config(GRPO("m", "out"), 1.0, Path("scratch")).delta) == (3.0, None)
    assert math.isclose(grpo_config(GRPO("m", "out", args={"delta": 4.0}), 1.0, Path("scratch")).delta, 4.0)
    two = GRPO("m", "out", importance_weighting="direct", max_weight=3.0, args={"delta": 4.0})
    with pytest.raises(TrainError, match=r"max_weight 3\.0 and args with delta 4\.0 were given; give one of them"):
        grpo_config(two, 1.0, Path("scratch"))
