"""What GRPO leaves out and refuses: each with its reason, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import TrainError
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.model_limits import ModelLimits
from cm2_agent.trainers.retokenize import rows_from_text
from cm2_agent.trainers.rows import NO_STEP
from cm2_agent.trainers.validation import check
from cm2_agent.types.group import Group
from cm2_agent.types.messages import Message
from tests.trainers.loop import (
    Sampler,
    shifted,
    stripped,
)


def test_what_cannot_be_trained_on_is_refused_with_the_reason(
    policy: Callable[..., Any], sample: Sampler, rewarded: Callable[..., Group], tokenizer: Any, tmp_path: Path
) -> None:
    group = sample(policy(1), groups=1)[0]
    cases: list[tuple[list[Group], str]] = [
        ([], "no group was given"),
        (
            [stripped(group, prompt_ids=None, completion_ids=None, logprobs=None)],
            r"4 × no token ids. Text-only traces .* SFT first",
        ),
        (
            [rewarded(group, [None] * 4, null_reason="failure: ToolError: x")],
            r"all rewards are NULL: 4 × no reward: failure",
        ),
        ([rewarded(group, [0.5] * 4)], "none of the 1 groups has a non-zero advantage"),
        ([group, replace(group, key={**group.key, "reward": "checklist:2"})], "2 reward versions"),
        ([group, stripped(group, sampling={"temperature": 0.5, "logprobs": "processed"})], r"temperatures 0\.5, 1\.0"),
        ([stripped(group, prompt_ids=(5000,))], "holds token id 5000, the model knows 267"),
        ([stripped(group, sampling={"temperature": 0, "logprobs": "raw"})], "4 × temperature 0"),
    ]
    for groups, message in cases:
        with pytest.raises(TrainError, match=message):
            GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, steps=1).train(groups)
    assert list(tmp_path.iterdir()) == []


def test_retokenised_rows_are_refused(sample: Sampler, policy: Callable[..., Any], tokenizer: Any) -> None:
    group = stripped(sample(policy(1), groups=1)[0], prompt_ids=None, completion_ids=None)
    silent = build_dataset([group], from_text=rows_from_text(tokenizer)).report
    assert (silent.rows, silent.left_out) == (0, {NO_STEP: 4})  # messages without words
    said = (Message.of("user", "Where is it?"), Message.of("assistant", "It was sent."))
    spoken = [
        replace(one, trace=replace(one.trace, runs=tuple(replace(run, messages=said) for run in one.trace.runs)))
        for one in group.rollouts
    ]
    dataset = build_dataset([replace(group, rollouts=tuple(spoken))], from_text=rows_from_text(tokenizer))
    assert dataset.report.rows == 4
    with pytest.raises(TrainError, match=r"4 of 4 rows were made from words \(retokenised\).*SFT"):
        check(dataset, versions=None, model=ModelLimits(policy(1)))


def test_rollouts_outside_the_band_are_left_out_and_counted(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    near, far = sample(model, groups=2, version="older"), shifted(sample(model, groups=1, version="older"), -1.0)
    grpo = GRPO(model, tmp_path / "out", tokenizer=tokenizer, steps=1)
    grpo.train([*near, *far])
    assert grpo.report["left_out"] == {"mean ratio outside [1/2, 2]": 4}
    assert grpo.report["rows"] == 8
    with pytest.raises(TrainError, match="nothing is left to learn from"):
        GRPO(policy(1), tmp_path / "none", tokenizer=tokenizer, steps=1).train(far)
    with pytest.raises(TrainError, match="above max_kl"):
        GRPO(policy(1), tmp_path / "none", tokenizer=tokenizer, steps=1, ratio_band=None, max_kl=0.1).train(far)


def test_older_policies_pass_by_their_lag(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = [sample(policy(1), groups=1, version=name)[0] for name in ("v1", "v2", "v3")]
    with pytest.raises(TrainError, match="3 policies: v1, v2, v3"):
        GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer).train(groups)
    with pytest.raises(TrainError, match="'v3' of the groups is not among versions"):
        GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, versions=["v1", "v2"]).train(groups)
    grpo = GRPO(policy(1), tmp_path / "out", tokenizer=tokenizer, versions=["v1", "v2", "v3"], max_lag=1, steps=1)
    grpo.train(groups)
    assert grpo.report["left_out"] == {"policy lag above max_lag": 4}
