"""The fingerprint of a model with an adapter: one name in memory and from disk, for every form of adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from cm2_agent.models import fingerprint
from cm2_agent.models.adapters import save_adapter
from cm2_agent.models.loading import load_policy_model

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole modules": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [1, 2]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50}
    folder = tmp_path_factory.mktemp("base")
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_one_name_everywhere(base: Path, tmp_path: Path, form: str, dtype: str) -> None:
    start = fingerprint(load_policy_model(base, dtype=dtype))
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **FORMS[form]}
    model = get_peft_model(load_policy_model(base, dtype=dtype), LoraConfig(**settings))
    names = [fingerprint(model)]
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    names.append(fingerprint(model))
    assert names[0] != names[1]
    assert names[1].startswith(f"{start}+")
    save_adapter(model, tmp_path)
    loaded = load_policy_model(tmp_path, dtype=dtype)
    assert fingerprint(loaded) == names[1]
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    with model.disable_adapter():
        assert fingerprint(model) == start
    merged = fingerprint(loaded.merge_and_unload())
    assert merged not in (start, names[1])
    # transformers rounds an adapter to the model's dtype, and reads some forms otherwise: other policies, other names.
    if dtype == "float32" and form in ("plain", "rslora", "patterns", "whole modules"):
        assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == names[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mixture_of_experts(tmp_path: Path, dtype: str) -> None:
    """Its experts are fused tensors, over which one wrapper stands within another."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 50}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 1}
    MixtralForCausalLM(MixtralConfig(num_local_experts=2, **sizes, **heads)).save_pretrained(tmp_path / "base")
    start = fingerprint(load_policy_model(tmp_path / "base", dtype=dtype))
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_policy_model(tmp_path / "base", dtype=dtype), settings)
    assert any("experts.base_layer.lora_A" in name for name, _ in model.named_parameters())
    assert fingerprint(model) == start  # a new adapter adds nothing yet
    names = set()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
            names.add(fingerprint(model))  # each of them counts
    assert len(names) == sum("lora_B" in name for name, _ in model.named_parameters())
    assert all(name.startswith(f"{start}+") for name in names)
    (tmp_path / "adapter").mkdir()
    save_adapter(model, tmp_path / "adapter")
    assert fingerprint(load_policy_model(tmp_path / "adapter", dtype=dtype)) == fingerprint(model)
    with model.disable_adapter():
        assert fingerprint(model) == start


def test_rank_and_scale_are_part_of_the_name(base: Path) -> None:
    def made(**settings: Any) -> str:
        torch.manual_seed(2)
        config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, **settings)
        return fingerprint(get_peft_model(load_policy_model(base), config))

    alike = [made(r=4, lora_alpha=8), made(r=4, lora_alpha=8, lora_dropout=0.5)]
    others = [made(r=4, lora_alpha=4), made(r=2, lora_alpha=4), made(r=4, lora_alpha=8, use_rslora=True)]
    assert len({*alike}) == 1
    assert len({*alike, *others}) == 4
