"""GRPO on stored rows against a plain PyTorch loop, and the traps: is the stored denominator used, is a row dropped, is
more trained?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm2_agent.trainers.collator import Sample, collate, dealt
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.rows import Row, Span
from cm2_agent.trainers.trl_trainer import StoredGRPOTrainer
from cm2_agent.types.group import Group
from tests.trainers.loop import SGD, Sampler, apart, logprobs_of, plain_loop, rows_of_groups, shifted, trained


@pytest.mark.parametrize(
    ("form", "stale", "args"),
    [
        ("truncated", 0.0, {}),
        ("truncated", 0.8, {}),
        ("direct", 0.8, {}),
        ("truncated", 0.8, {"gradient_accumulation_steps": 3}),  # 8 rows in 3 parts: a remainder
        ("direct", 0.8, {"num_iterations": 2, "gradient_accumulation_steps": 3}),
        ("truncated", 0.8, {"num_iterations": 2}),
        ("truncated", 0.8, {"beta": 0.2}),
    ],
)
def test_the_loss_and_the_weights_are_a_plain_loops(
    policy: Callable[..., Any],
    sample: Sampler,
    tokenizer: Any,
    tmp_path: Path,
    form: str,
    stale: float,
    args: dict[str, Any],
) -> None:
    model = policy(1)
    groups = sample(model, groups=2, size=4, stale=stale, version="older" if stale else None)
    twin = copy.deepcopy(model)
    expected = plain_loop(twin, rows_of_groups(groups), form=form, steps=4, lr=2.0, beta=args.get("beta", 0.0))
    grpo = GRPO(
        model,
        tmp_path / "out",
        tokenizer=tokenizer,
        form=form,  # type: ignore[arg-type]
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
    expected = plain_loop(twin, rows_of_groups(groups), form="truncated", steps=2, lr=1.0, temperature=0.6)
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
    assert first_loss(model, shifted(groups, by), tokenizer, tmp_path / "out", form="direct") == pytest.approx(
        expected, rel=1e-4
    )


# -- below GRPO: the trainer on samples of our own


def trainer_of(model: Any, tokenizer: Any, batches: list[list[Sample]], folder: Path, **args: Any) -> StoredGRPOTrainer:
    from datasets import Dataset
    from trl import GRPOConfig

    settings = {
        "output_dir": str(folder),
        "max_steps": len(batches),
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "epsilon_high": 0.28,
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "beta": 0.0,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        **SGD,
        **args,
    }
    prompts = Dataset.from_dict({"prompt": [""] * 64})
    return StoredGRPOTrainer(
        batches=iter(batches),
        model=model,
        args=GRPOConfig(**settings),
        processing_class=tokenizer,
        train_dataset=prompts,
    )


def ready(rows: Sequence[Row]) -> list[Sample]:
    samples = [Sample.of(row) for row in rows]
    return [replace(one, old=one.mu) for one in samples]


def test_a_group_without_differences_moves_nothing(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    rows = [
        replace(row, spans=tuple(replace(span, advantage=0.0) for span in row.spans))
        for row in rows_of_groups(sample(model, groups=1))
    ]
    before = copy.deepcopy(model)
    trainer_of(model, tokenizer, [ready(rows)], tmp_path).train()
    assert apart(model, before) == 0.0


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


def test_only_model_tokens_have_logits_and_gradients(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    samples = ready(rows_of_groups(sample(model, groups=2, stale=0.5, version="older")))
    trainer = trainer_of(model, tokenizer, [samples], tmp_path)
    trainer.current_gradient_accumulation_steps = 1  # what TRL sets when an optimizer step begins
    model.train()
    batch = collate(samples, pad_id=tokenizer.pad_token_id)
    mask = (batch["tool_mask"] * batch["completion_mask"]).bool()

    def gradients(inputs: dict[str, torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = trainer._compute_loss(model, inputs)
        torch.autograd.backward(loss)
        return float(loss.detach()), [parameter.grad.clone() for parameter in model.parameters()]

    logits: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, given, out: logits.append(out.shape[0]))
    loss, expected = gradients(batch)
    handle.remove()
    assert sum(logits) == int(mask.sum()) == sum(one.row.trained for one in samples)
    spoiled = {**batch}
    for name, value in (("advantages", 1e3), ("old_per_token_logps", -40.0)):
        spoiled[name] = torch.where(mask, batch[name], torch.full_like(batch[name], value))
    again, found = gradients(spoiled)
    assert again == loss
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_logprobs_of_trained_positions_are_trls_own(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    from trl import GRPOTrainer

    model = policy(1)
    samples = ready(rows_of_groups(sample(model, groups=2, temperature=0.8)))
    trainer = trainer_of(model, tokenizer, [samples], tmp_path, temperature=0.8)
    batch = collate(samples, pad_id=tokenizer.pad_token_id)
    ids, seen = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask"))
    mask = batch["tool_mask"]
    width = mask.size(1)
    theirs, their_entropies, _ = GRPOTrainer._get_per_token_logps_and_entropies(
        trainer, model, ids, seen, width, compute_entropy=True
    )
    trainer._trained = mask
    ours, entropies, _ = trainer._get_per_token_logps_and_entropies(model, ids, seen, width, compute_entropy=True)
    assert entropies is not None
    assert torch.allclose(ours, theirs * mask, atol=1e-5)
    assert torch.allclose(entropies, their_entropies * mask, atol=1e-4)
    assert torch.equal(ours[mask == 0], torch.zeros_like(ours[mask == 0]))
    for one, found in zip(samples, trainer.logprobs(samples), strict=True):
        assert found == pytest.approx(logprobs_of(model, one.row, 0.8).detach().numpy(), abs=1e-5)


def test_no_row_is_dropped_by_the_split_into_parts(policy: Callable[..., Any], sample: Sampler, tokenizer: Any) -> None:
    from trl.trainer.utils import split_tensor_dict

    samples = ready(rows_of_groups(sample(policy(1), groups=2, size=4)))[:7]
    for parts in (1, 2, 3, 4, 5, 8):
        batch = collate(samples, pad_id=tokenizer.pad_token_id, multiple=parts)
        split: list[Any] = split_tensor_dict({**batch}, parts)
        assert (
            sum(int(part["tool_mask"].sum()) for part in split)
            == sum(one.row.trained for one in samples)
            == int(batch["num_items_in_batch"])
        )
        assert all(bool((part["prompt_mask"].sum(1) + part["completion_mask"].sum(1) > 0).all()) for part in split)


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


def test_a_rollout_in_two_rows_counts_as_it_would_in_one(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1)
    rows = rows_of_groups(sample(model, groups=1, stale=0.3, version="older"))
    assert all(len(row.spans) == 2 for row in rows)
    halves = [
        half
        for row in rows
        for half in (
            replace(row, ids=row.ids[: row.spans[0].stop], spans=row.spans[:1]),
            replace(row, spans=row.spans[1:]),
        )
    ]
    found = []
    for number, given in enumerate((rows, halves)):
        twin = copy.deepcopy(model)
        trainer = trainer_of(twin, tokenizer, [ready(given)], tmp_path / str(number))
        trainer.train()
        found.append((trainer.history[0]["loss"], twin))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert apart(found[0][1], found[1][1]) < 1e-6


def test_collated_rows_hold_what_the_row_holds() -> None:
    first = Span(start=2, stop=4, turn=0, step=0, logprobs=(-1.0, -2.0), advantage=0.5)
    second = Span(start=5, stop=6, turn=0, step=1, logprobs=(-3.0,), advantage=-1.0)
    row = Row(trace_id="t", ids=(1, 2, 10, 11, 3, 12), spans=(first, second))
    short = Row(
        trace_id="u", ids=(7, 8), spans=(Span(start=1, stop=2, turn=0, step=0, logprobs=(-4.0,), advantage=2.0),)
    )
    batch = collate(ready([row, short]), pad_id=0, multiple=3)
    expected = {
        "prompt_ids": [[1, 2], [0, 7], [0, 0]],
        "prompt_mask": [[1, 1], [0, 1], [0, 1]],
        "completion_ids": [[10, 11, 3, 12], [8, 0, 0, 0], [0] * 4],
        "completion_mask": [[1] * 4, [1, 0, 0, 0], [0] * 4],
        "tool_mask": [[1, 1, 0, 1], [1, 0, 0, 0], [0] * 4],
        "advantages": [[0.5, 0.5, 0, -1], [2, 0, 0, 0], [0] * 4],
        "old_per_token_logps": [[-1, -2, 0, -3], [-4, 0, 0, 0], [0] * 4],
        "num_items_in_batch": 4,
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected


@pytest.mark.parametrize("sizes", [[8] * 8, [8], [3, 8, 1, 5, 2], [1] * 17])
def test_each_pass_deals_every_group_once_in_even_batches(sizes: list[int]) -> None:
    groups = list(range(len(sizes)))
    for target in (1, 4, 16, 100):
        passes = [dealt(groups, sizes, target, seed=0, epoch=epoch) for epoch in (0, 1)]
        for batches in passes:
            assert sorted(group for batch in batches for group in batch) == groups
            counts = [sum(sizes[group] for group in batch) for batch in batches]
            assert max(counts) - min(counts) <= 2 * max(sizes)
        assert dealt(groups, sizes, target, seed=0, epoch=0) == passes[0]
    assert len(sizes) < 6 or dealt(groups, sizes, 4, seed=0, epoch=0) != dealt(groups, sizes, 4, seed=0, epoch=1)
