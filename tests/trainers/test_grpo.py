"""GRPO on stored rows against a plain PyTorch loop, and the traps: is the stored denominator used, is a row dropped, is
more trained?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm2_agent.trainers.grpo import GRPO
from cm2_agent.types.group import Group
from tests.trainers.loop import SGD, Sampler, apart, plain_loop, rows_of_groups, shifted, trained


@pytest.mark.parametrize(
    ("weighting", "stale", "args"),
    [
        ("decoupled", 0.0, {}),
        ("decoupled", 0.8, {}),
        ("direct", 0.8, {}),
        ("decoupled", 0.8, {"gradient_accumulation_steps": 3}),  # 8 rows in 3 parts: a remainder
        ("direct", 0.8, {"num_iterations": 2, "gradient_accumulation_steps": 3}),
        ("decoupled", 0.8, {"num_iterations": 2}),
        ("decoupled", 0.8, {"beta": 0.2}),
    ],
)
def test_the_loss_and_the_weights_are_a_plain_loops(
    policy: Callable[..., Any],
    sample: Sampler,
    tokenizer: Any,
    tmp_path: Path,
    weighting: str,
    stale: float,
    args: dict[str, Any],
) -> None:
    model = policy(1)
    groups = sample(model, groups=2, size=4, stale=stale, version="older" if stale else None)
    twin = copy.deepcopy(model)
    expected = plain_loop(
        twin, rows_of_groups(groups), importance_weighting=weighting, steps=4, lr=2.0, beta=args.get("beta", 0.0)
    )
    grpo = GRPO(
        model,
        tmp_path / "out",
        tokenizer=tokenizer,
        importance_weighting=weighting,  # type: ignore[arg-type]
        learning_rate=2.0,
        steps=4,
        ratio_band=None,
        args={**SGD, **args},
    )
    path = grpo.train(groups)
    losses = [step["loss"] for step in grpo.report["history"]]
    assert losses == pytest.approx(expected, abs=1e-5)
    assert len({round(loss, 4) for loss in losses}) > 1  # the policy moved, or the ratios were never tried
    assert apart(trained(path), twin) < 1e-5
    assert apart(policy(1), twin) > 1e-3


def test_temperature_is_that_of_the_recorded_logprobs(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    groups = sample(model, groups=2, temperature=0.6)
    twin = copy.deepcopy(model)
    expected = plain_loop(
        twin, rows_of_groups(groups), importance_weighting="decoupled", steps=2, lr=1.0, temperature=0.6
    )
    grpo = GRPO(model, tmp_path / "out", tokenizer=tokenizer, learning_rate=1.0, steps=2, args=SGD)
    path = grpo.train(groups)
    assert grpo.report["recomputed"]["mean_abs"] < 1e-5
    assert grpo.report["temperature"] == 0.6
    assert [step["loss"] for step in grpo.report["history"]] == pytest.approx(expected, abs=1e-5)
    assert apart(trained(path), twin) < 1e-5


def first_loss(model: Any, groups: Sequence[Group], tokenizer: Any, out: Path, **settings: Any) -> float:
    grpo = GRPO(
        copy.deepcopy(model),
        out,
        tokenizer=tokenizer,
        steps=1,
        learning_rate=0.0,
        ratio_band=None,
        args=dict(SGD),
        **settings,
    )
    grpo.train(groups)
    return float(grpo.report["history"][0]["loss"])


@pytest.mark.parametrize(("by", "factor"), [(0.5, math.exp(-0.5)), (-0.4, math.exp(0.4)), (-2.0, 2.0)])
def test_shifted_logprobs_scale_the_truncated_loss_by_the_ratio_up_to_the_cap(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path, by: float, factor: float
) -> None:
    model = policy(1)
    groups = sample(model, groups=2, tokens=6)
    fresh = first_loss(model, groups, tokenizer, tmp_path / "fresh")
    assert abs(fresh) > 1e-3
    assert first_loss(model, shifted(groups, by), tokenizer, tmp_path / "shifted") == pytest.approx(
        factor * fresh, rel=1e-4
    )


@pytest.mark.parametrize(
    ("by", "up", "down"), [(0.5, math.exp(-0.5), 0.8), (-0.2, math.exp(0.2), math.exp(0.2)), (-2.0, 1.28, 2.0)]
)
def test_shifted_logprobs_enter_the_direct_ratio(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path, by: float, up: float, down: float
) -> None:
    """A token with A > 0 counts min(r, 1.28)·A, one with A < 0 counts max(min(r, 2), 0.8)·A: r = e^−by for all of
    them."""
    model = policy(1)
    groups = sample(model, groups=2, tokens=6)
    values = np.array(
        [value for row in rows_of_groups(groups) for span in row.spans for value in [span.advantage] * len(span)]
    )
    expected = -float(np.where(values > 0, up * values, down * values).sum()) / len(values)
    assert first_loss(
        model, shifted(groups, by), tokenizer, tmp_path / "out", importance_weighting="direct"
    ) == pytest.approx(expected, rel=1e-4)


def test_uninformative_groups_are_left_out_without_a_kl_term(
    policy: Callable[..., Any], sample: Sampler, rewarded: Callable[..., Group], tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=2)
    flat = rewarded(groups[1], [0.5] * 4)
    reports = []
    for name, given in (("alone", groups[:1]), ("beside", [groups[0], flat])):
        grpo = GRPO(policy(1), tmp_path / name, tokenizer=tokenizer, steps=2, learning_rate=1.0, args=SGD)
        grpo.train(given)
        reports.append(grpo.report)
    assert reports[0]["policy"]["after"] == reports[1]["policy"]["after"] != reports[0]["policy"]["before"]
    assert (reports[1]["zero_advantage_groups"], reports[1]["informative_groups"]) == (1, 1)


def test_parts_that_hold_only_filling_rows_are_no_trouble(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    groups = sample(policy(1), groups=1, size=2)
    weights = []
    for parts in (1, 8):
        path = GRPO(
            policy(1),
            tmp_path / str(parts),
            tokenizer=tokenizer,
            steps=1,
            learning_rate=1.0,
            args={**SGD, "gradient_accumulation_steps": parts},
        ).train(groups)
        weights.append(trained(path))
    assert apart(*weights) < 1e-6
    assert apart(weights[0], policy(1)) > 1e-4
