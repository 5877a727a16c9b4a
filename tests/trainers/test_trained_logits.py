"""Log-probabilities of trained positions: any vocabulary, any head, adapters, low precision, layers recomputed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cm2_agent.trainers.micro_batches import PADDING, MicroBatches
from cm2_agent.trainers.trained_logits import LOGITS_AT_ONCE, head_logprobs, separable
from tests.trainers.loop import Sampler, apart, logprobs_of, ready, rows_of_groups, trainer_of
from tests.trainers.test_micro_batches import ragged, stepped


@pytest.mark.parametrize("entropy", [False, True])
def test_chunks_of_logits_have_the_values_and_gradients_of_all_at_once(entropy: bool) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 50).double()
    states, labels = torch.randn(11, 8, dtype=torch.float64, requires_grad=True), torch.randint(0, 50, (11,))
    found = []
    for chunk in (None, 1, 4, 11, 100):
        logps, entropies = head_logprobs(head, states, labels, 0.7, True, entropy, chunk=chunk)
        loss = (logps * torch.arange(11)).sum() + ((entropies**2).sum() if entropy else 0.0)
        found.append(torch.autograd.grad(loss, [states, *head.parameters()]))
        expected = torch.log_softmax(head(states) / 0.7, -1)
        assert torch.allclose(logps, expected[torch.arange(11), labels], atol=1e-12)
        assert torch.allclose(entropies, -(expected.exp() * expected).sum(-1), atol=1e-12)
    for one in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found[0], one, strict=True))


def test_no_more_logits_are_made_at_once_than_the_bound_whatever_the_vocabulary(
    policy: Callable[..., Any], tokenizer: Any
) -> None:
    model, samples = policy(1), ragged(3, 31)
    torch.manual_seed(0)
    model.resize_token_embeddings(60_000, mean_resizing=False)
    trained = sum(one.row.trained for one in samples)
    assert trained * 60_000 < LOGITS_AT_ONCE < 2 * trained * 60_000
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, given, out: sizes.append(out.numel()))
    (few, fine), (many, chunked) = (stepped(model, tokenizer, samples * times, MicroBatches()) for times in (1, 2))
    assert sum(sizes) == 5 * trained * 60_000  # those of twice the rows once more in the backward pass
    assert max(sizes) <= LOGITS_AT_ONCE
    assert many == pytest.approx(few, abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(fine, chunked, strict=True))


def test_an_adapter_takes_the_short_way_too(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    model = policy(1)
    samples = ready(rows_of_groups(sample(model, groups=2)))
    adapted: Any = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    assert separable(adapted) is adapted.get_base_model()
    trainer = trainer_of(adapted, tokenizer, [samples], tmp_path)
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, given, out: sizes.append(out.shape[0]))
    logprobs = trainer.logprobs([one.row for one in samples])
    assert sum(sizes) == sum(one.row.trained for one in samples)
    for one, found in zip(samples, logprobs, strict=True):
        assert found == pytest.approx(logprobs_of(adapted, one.row).detach().numpy(), abs=1e-5)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_prompt_tuning_passes_through_the_model_as_a_whole(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any
) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = policy(1)
    tuned: Any = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert separable(tuned) is None
    assert separable(nn.Linear(2, 2)) is None


def other_heads() -> dict[str, Any]:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": 0,
    }
    return {
        "capped": lambda: Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=2.0, initializer_range=0.5)),
        "scaled": lambda: GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=3.0, initializer_range=0.5)),
    }


@pytest.mark.parametrize("kind", ["capped", "scaled"])
def test_a_capped_or_scaled_head_is_the_models_own(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = other_heads()[kind]()
    assert separable(model) is None
    samples = ragged(2, 11)
    trainer = trainer_of(twin := copy.deepcopy(model), tokenizer, [samples], tmp_path)
    seen: list[int] = []
    twin.base_model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    for one, found in zip(samples, trainer.logprobs([one.row for one in samples]), strict=True):
        assert found == pytest.approx(logprobs_of(model, one.row).detach().numpy(), abs=1e-4)
    assert sum(seen) <= PADDING * sum(len(one.row.ids) for one in samples)
    whole, parts = (stepped(model, tokenizer, samples, MicroBatches(rows=rows)) for rows in (None, 2))
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(parts[1], whole[1], strict=True))


def test_a_bf16_model_gives_the_logprobs_of_its_own_forward_pass(
    policy: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    """Bit for bit: the same rows alone, the head in the model's dtype, the softmax in float32."""
    model, samples = policy(1).to(torch.bfloat16), ragged(2, 5)
    trainer = trainer_of(model, tokenizer, [samples], tmp_path)
    for one in samples:
        ids = torch.tensor([one.row.ids])
        with torch.no_grad():
            whole = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
        right = whole[one.row.positions - 1, ids[0, one.row.positions]].double().numpy()
        assert np.abs(trainer.logprobs([one.row])[0] - right).max() < 1e-6


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_layers_are_computed_again_in_the_backward_pass_where_asked_for(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path, name: str, adapter: bool
) -> None:
    from peft import LoraConfig, get_peft_model

    model = policy(1)
    samples = ready(rows_of_groups(sample(model, groups=2)))
    found = []
    for given in (False, True):
        torch.manual_seed(0)
        twin = copy.deepcopy(model)
        calls: list[int] = []
        twin.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        args: dict[str, Any] = {"activation_checkpointing": None, name: given}
        trained: Any = get_peft_model(twin, LoraConfig(r=4, target_modules=["q_proj"])) if adapter else twin
        trainer = trainer_of(trained, tokenizer, [samples], tmp_path, **args)
        trainer.train()
        found.append((trainer.history[0]["loss"], len(calls), trained))
    (loss, once, plain), (again, twice, recomputed) = found
    assert again == loss
    assert (once, twice) == (1, 2)
    assert apart(plain, recomputed) < 1e-7
