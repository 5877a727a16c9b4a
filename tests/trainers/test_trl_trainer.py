"""The trainer on samples of our own: only model tokens are trained, and its log-probabilities are TRL's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cm2_agent.trainers.collator import collate
from tests.trainers.loop import Sampler, apart, logprobs_of, ready, rows_of_groups, trainer_of


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
    for one, found in zip(samples, trainer.logprobs([one.row for one in samples]), strict=True):
        assert found == pytest.approx(logprobs_of(model, one.row, 0.8).detach().numpy(), abs=1e-5)


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
