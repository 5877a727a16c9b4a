"""Dropout in the model: none while ratios are taken, with gradients or without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cm2_agent.trainers.grpo import GRPO
from tests.trainers.loop import SGD, Sampler, apart, trained


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_with_dropout_takes_the_steps_of_one_without(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path, checkpointing: bool
) -> None:
    groups = sample(policy(1), groups=3)
    folders = []
    for rate in (0.0, 0.5):
        grpo = GRPO(
            policy(1, attention_dropout=rate),
            tmp_path / str(rate),
            tokenizer=tokenizer,
            steps=2,
            learning_rate=0.5,
            args={**SGD, "activation_checkpointing": checkpointing},
        )
        folders.append(grpo.train(groups))
        assert grpo.report["fresh"] is True
        assert grpo.report["history"][0]["clip_ratio/region_mean"] == 0
    assert apart(trained(folders[0]), trained(folders[1])) == 0.0
    assert trained(folders[1]).config.attention_dropout == 0.5


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "Falcon", "Phi"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_family_computes_alike_with_dropout_off(kind: str, checkpointing: bool) -> None:
    """These apply dropout in modules, by function, at the configuration's rate, within and between layers."""
    import transformers

    from cm2_agent.trainers.dropout import restore_dropout, switch_off_dropout

    rates = {
        "GPT2": {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5, "n_embd": 32, "n_layer": 2, "n_head": 2},
        "OPT": {"dropout": 0.5, "attention_dropout": 0.5, "ffn_dim": 64, "word_embed_proj_dim": 32},
        "Falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
        "Phi": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5, "intermediate_size": 64},
    }[kind]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2} if kind != "GPT2" else {}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, **sizes, **rates)
    model = getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config)
    twin = copy.deepcopy(model).eval()
    ids = torch.arange(1, 21)[None]
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    switch_off_dropout(model)
    for one in (model, twin):
        one(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-7)
    restore_dropout(model)
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(model(input_ids=ids).logits, twin(input_ids=ids).logits, atol=1e-3)
