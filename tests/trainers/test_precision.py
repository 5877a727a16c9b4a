"""Models in bfloat16 and float16: they train by defaults, in float32 underneath, and other weights are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

from cm2_agent.errors import TrainError
from cm2_agent.models.local import fingerprint
from cm2_agent.trainers.cached_logprobs import cached_logprobs
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.trainers.master_weights import MasterWeights
from cm2_agent.trainers.sft import SFT
from tests.trainers.loop import SGD, Sampler, plain_loop, ready, rows_of_groups, trained, trainer_of


@pytest.fixture(scope="module")
def half(policy: Callable[..., Any]) -> Any:
    """A model in bfloat16 that rounds as much as a real one: its logits are tens."""
    return policy(1, initializer_range=0.4, hidden_size=64).to(torch.bfloat16)


@pytest.fixture(scope="module")
def rollouts(half: Any, sample: Sampler) -> list[Any]:
    return sample(half, groups=7, size=8, tokens=12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_folder_trains_by_defaults_and_keeps_its_dtype(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    policy(1, initializer_range=0.4).to(dtype).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    # As it is loaded: `to` rounds the rotary frequencies too, which is another model.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype="auto")
    grpo = GRPO(tmp_path / "start", tmp_path / "out", epochs=4, rollouts_per_step=12, learning_rate=1e-3)
    path = grpo.train(sample(model, groups=6))
    better = trained(path)
    assert better.dtype == dtype
    assert json.loads((path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert grpo.report["fresh"] is True
    found = grpo.report["recomputed"]
    assert found["mean_abs"] <= found["tolerance"] < 3 * found["spread"] + torch.finfo(dtype).eps + 1e-3
    assert grpo.report["policy"] == {
        "behaviour": [fingerprint(model)],
        "before": fingerprint(model),
        "after": fingerprint(better),
    }
    assert grpo.report["off_policy_after"]["kl_per_token"] > 2 * grpo.report["off_policy"]["kl_per_token"]


def test_steps_below_the_rounding_add_up(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """Against a loop of its own on float32 weights: 30 steps, each of which rounds to nothing nearly everywhere."""
    model = policy(1).to(torch.bfloat16)
    groups = sample(model, groups=2, stale=0.3, version="older")
    twin, one = copy.deepcopy(model).float(), copy.deepcopy(model)
    plain_loop(twin, rows_of_groups(groups), importance_weighting="decoupled", steps=30, lr=2e-3)
    for steps, moved in ((1, one), (30, model)):
        GRPO(
            moved,
            tmp_path / str(steps),
            tokenizer=tokenizer,
            steps=steps,
            learning_rate=2e-3,
            ratio_band=None,
            args=SGD,
        ).train(groups)
    start = policy(1).to(torch.bfloat16)

    def way(model: Any) -> torch.Tensor:
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        return torch.cat([(now.detach().float() - before.detach().float()).flatten() for now, before in pairs])

    assert float((way(one) != 0).float().mean()) < 0.1
    wanted, found = way(twin.to(torch.bfloat16)), way(model)
    assert float(torch.nn.functional.cosine_similarity(wanted, found, dim=0)) > 0.9
    assert float(found.norm() / wanted.norm()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("longest", [0.0, 0.05])
def test_what_a_float16_model_holds_in_float32_moves_as_far_as_in_a_float32_model(
    longest: float, sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """gpt-oss has its norms in float32, whatever the dtype of the rest."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 2}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    GptOssForCausalLM(GptOssConfig(**sizes, **heads, **ids, initializer_range=0.1)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype="float32")
    groups = sample(start, groups=2, version="older")
    ways = {}
    for dtype in ("float32", "float16"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=dtype)
        GRPO(
            model,
            tmp_path / dtype,
            tokenizer=tokenizer,
            steps=1,
            learning_rate=0.1,
            ratio_band=None,
            args={**SGD, "max_grad_norm": longest},
        ).train(groups)
        assert model.model.norm.weight.dtype == torch.float32
        ways[dtype] = model.model.norm.weight.detach() - start.model.norm.weight.detach()
    assert float(ways["float32"].norm()) > 1e-5
    assert float(torch.nn.functional.cosine_similarity(ways["float32"], ways["float16"], dim=0)) > 0.9
    assert float(ways["float16"].norm() / ways["float32"].norm()) == pytest.approx(1.0, abs=0.1)


def test_small_gradients_reach_an_adapter_over_a_float16_base(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """They pass through activations in float16, where what is below 6e-8 is 0: the loss is scaled on its way."""
    groups = [
        replace(
            one,
            rollouts=tuple(
                replace(rollout, score=replace(rollout.score, reward=(rollout.score.reward or 0) * 1e-5))
                for rollout in one.rollouts
            ),
        )
        for one in sample(policy(1), groups=2, version="older")
    ]
    moved = {}
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(3)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(policy(1).to(dtype), lora)
        settings: dict[str, Any] = {"steps": 1, "learning_rate": 1e3, "ratio_band": None, "args": SGD}
        GRPO(model, tmp_path / f"{dtype}", tokenizer=tokenizer, **settings).train(groups)
        parts = [one.detach().flatten() for name, one in model.named_parameters() if "lora_B" in name]
        assert {one.dtype for one in parts} == {torch.float32}
        moved[dtype] = torch.cat(parts)
    exact, found = moved[torch.float32], moved[torch.float16]
    assert float(exact.norm()) > 0
    assert float(torch.nn.functional.cosine_similarity(exact, found, dim=0)) > 0.98
    assert float(found.norm() / exact.norm()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("longest", [0.0, 1.0])
def test_a_scale_that_is_too_large_costs_a_step_alone(
    longest: float, policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """The gradients of the first step overflow; they are dropped, and the next ones come at half the scale."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(3)
    model = get_peft_model(policy(1).to(torch.float16), lora)
    args = {"optim": "sgd", "max_grad_norm": longest}
    sft = SFT(model, tmp_path / "out", tokenizer=tokenizer, steps=4, learning_rate=1e-2, args=args)
    sft.train(sample(policy(1), groups=2, version="older"))
    assert sum(float(one.detach().abs().sum()) for name, one in model.named_parameters() if "lora_B" in name) > 0


def test_a_model_in_memory_is_trained_again(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1).to(torch.bfloat16)
    names = [fingerprint(model)]
    for number in range(2):
        groups = sample(model, groups=2)
        grpo = GRPO(model, tmp_path / str(number), tokenizer=tokenizer, steps=1, learning_rate=1e-2)
        grpo.train(groups)
        names.append(fingerprint(model))
        assert grpo.report["fresh"] is True
    assert len({*names}) == 3


def _other_checkpoint(model: Any) -> None:
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.float().std())


def _one_more_step(model: Any) -> None:
    """What a step of Adam does first: every weight moves by the learning rate."""
    torch.manual_seed(6)
    for parameter in model.parameters():
        parameter.add_(3e-3 * torch.randn_like(parameter).sign())


def _smallest_step(model: Any) -> None:
    """Less than rounding hides from the mean: a few weights in a hundred move to the next number."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        moved = torch.rand(parameter.shape) < 0.03
        parameter.copy_(torch.where(moved, torch.nextafter(parameter, torch.full_like(parameter, 9.0)), parameter))


def _quantised(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            scale = parameter.float().abs().amax(1, keepdim=True) / 127
            parameter.copy_(torch.round(parameter.float() / scale) * scale)


@pytest.mark.parametrize("changed", [_other_checkpoint, _one_more_step, _smallest_step, _quantised])
def test_other_weights_are_refused(
    half: Any, rollouts: list[Any], tokenizer: Any, tmp_path: Path, changed: Callable[[Any], None]
) -> None:
    other = copy.deepcopy(half)
    with torch.no_grad():
        changed(other)
    grpo = GRPO(other, tmp_path / "out", tokenizer=tokenizer, steps=1, policy_version=fingerprint(half))
    with pytest.raises(TrainError, match="stored logprobs are not this policy's"):
        grpo.train(rollouts)
    assert not (tmp_path / "out").exists()


def test_one_rounding_is_allowed_where_two_runs_agree(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """A sure policy differs in few tokens, and one call may have none of them: here all weights are 0, and
    nothing rounds."""
    flat = policy(1, initializer_range=0.0).to(torch.bfloat16)
    grpo = GRPO(flat, tmp_path / "out", tokenizer=tokenizer, steps=1, learning_rate=1e-3, checks=1)
    grpo.train(sample(flat, groups=4))
    assert grpo.report["recomputed"]["spread"] < 1e-4
    assert grpo.report["recomputed"]["tolerance"] == 2**-8


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_the_same_weights_under_another_name_are_not_refused(
    half: Any, sample: Sampler, tokenizer: Any, tmp_path: Path, rows: int
) -> None:
    """An adapter of scale 0 computes the same bits, whatever batch the sampler had."""
    rollouts = sample(half, groups=8 // rows, size=max(2, rows), tokens=12, batch=rows)
    other = get_peft_model(copy.deepcopy(half), LoraConfig(r=2, lora_alpha=0, init_lora_weights=False))
    assert fingerprint(other) != fingerprint(half)
    settings: dict[str, Any] = {"steps": 1, "learning_rate": 1e-9, "policy_version": fingerprint(half)}
    grpo = GRPO(other, tmp_path / "out", tokenizer=tokenizer, **settings)
    grpo.train(rollouts)
    assert grpo.report["recomputed"]["reproduced"] >= 0.1


def test_an_endpoint_s_name_for_it_is_checked_by_the_mean(
    half: Any, sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """Another engine rounds otherwise: no digit need be the same, other weights are still refused."""
    rollouts = sample(half, groups=7, size=8, tokens=12, version="served")
    settings: dict[str, Any] = {"steps": 1, "learning_rate": 1e-9, "policy_version": "served"}
    grpo = GRPO(copy.deepcopy(half), tmp_path / "out", tokenizer=tokenizer, **settings)
    grpo.train(rollouts)
    assert "reproduced" not in grpo.report["recomputed"]
    other = copy.deepcopy(half)
    with torch.no_grad():
        _one_more_step(other)
    with pytest.raises(TrainError, match=r"mean \|difference\|"):
        GRPO(other, tmp_path / "no", tokenizer=tokenizer, **settings).train(rollouts)


def test_half_precision_that_is_asked_for_is_measured_too(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    """Autocast over float32 weights: the sampler was exact, training is not."""
    model = policy(1, initializer_range=0.4)
    rollouts = sample(model, groups=4)
    grpo = GRPO(model, tmp_path / "out", tokenizer=tokenizer, steps=1, args={"bf16": True, "use_cpu": True})
    grpo.train(rollouts)
    assert grpo.report["recomputed"]["spread"] > 1e-3


def test_a_token_at_a_time_gives_what_one_pass_gives(
    policy: Callable[..., Any], sample: Sampler, tokenizer: Any, tmp_path: Path
) -> None:
    model = policy(1).eval()
    rows = rows_of_groups(sample(model, groups=3, size=7, temperature=0.7))
    trainer = trainer_of(model, tokenizer, [ready(rows)], tmp_path, temperature=0.7)
    calls = [(row.ids[: span.start], row.ids[span.start : span.stop]) for row in rows for span in row.spans]
    once = [part for row, values in zip(rows, trainer.logprobs(rows), strict=True) for part in _by_span(row, values)]
    again = cached_logprobs(model, calls, temperature=0.7)
    assert max(float(abs(a - b).max()) for a, b in zip(once, again, strict=True)) < 1e-5


def _by_span(row: Any, values: Any) -> list[Any]:
    starts = [sum(len(span) for span in row.spans[:number]) for number in range(len(row.spans))]
    return [values[start : start + len(span)] for start, span in zip(starts, row.spans, strict=True)]


def test_masters_go_into_a_checkpoint_and_come_back(policy: Callable[..., Any], tmp_path: Path) -> None:
    model = policy(1).to(torch.bfloat16)
    masters = MasterWeights(dict(model.named_parameters()))
    with torch.no_grad():
        for one in masters.parameters():
            one.add_(1e-6)
    masters.save(tmp_path)
    again = MasterWeights(dict(policy(1).to(torch.bfloat16).named_parameters()))
    again.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(masters.parameters(), again.parameters(), strict=True))
    small = MasterWeights(dict(policy(1, num_hidden_layers=1).to(torch.bfloat16).named_parameters()))
    with pytest.raises(TrainError, match="holds the master weights of"):
        small.load(tmp_path)


def test_gradients_add_up_in_float32_and_come_back_unscaled(policy: Callable[..., Any]) -> None:
    layer = torch.nn.Linear(3, 1, bias=False).to(torch.float16)
    masters = MasterWeights(dict(layer.named_parameters()), scale=1024.0)
    for _ in range(3):
        (layer(torch.ones(1, 3, dtype=torch.float16)).sum() * 1024.0 * 1e-3).backward()
    (master,) = masters.parameters()
    assert layer.weight.grad is None
    assert master.grad is not None
    assert torch.allclose(master.grad, torch.full((1, 3), 3e-3), rtol=2e-3)
    master.grad[0, 0] = float("inf")
    assert masters.drop_infinite()
    assert masters.scale == 512.0
    assert master.grad is None
    masters.release()
