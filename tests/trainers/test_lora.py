"""LoRA: an adapter is trained, saved, loaded, sampled with and trained on, and is one policy everywhere."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from cm2_agent import (
    DPO,
    GRPO,
    SFT,
    Checklist,
    Group,
    Item,
    LocalChatModel,
    Message,
    Rollout,
    Run,
    Score,
    SQLStore,
    Task,
    Trace,
    run,
)
from cm2_agent.errors import TrainError
from cm2_agent.graphs import agent
from cm2_agent.models import fingerprint
from cm2_agent.models.loading import load_policy_model
from cm2_agent.trainers.lora import parse_lora
from cm2_agent.trainers.output_folder import whole_folder
from tests.trainers.loop import SGD, Sampler, apart

LORA = {"r": 4, "lora_alpha": 8}
FILES = ["adapter_config.json", "adapter_model.safetensors", "report.json"]


@pytest.fixture
def base(policy: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    policy(1, initializer_range=0.3).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def half(base: Path) -> Path:
    """The base as a checkpoint in bfloat16."""
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    return base


def adapter_of(base: Path, **settings: Any) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(**{**LORA, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings})
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), config)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_rounds_through_the_store(base: Path, tmp_path: Path, dtype: str) -> None:
    """Sample, train an adapter, sample with it, train it on: each round's stored calls are its policy's own."""
    if dtype == "bfloat16":
        half(base)
    checklist = Checklist(
        Item("letter", check={"reply_matches": "[a-z]"}), Item("early", check={"reply_matches": "[a-m]{2}"}), name="two"
    )
    store = SQLStore("sqlite://")
    tasks = [Task(id=f"t{number}", turns=(f"hi {number}",)) for number in range(3)]
    folder, version, moved = base, None, []
    for number in range(2):
        model = LocalChatModel.load(folder, max_tokens=10)
        assert version in (None, model.model_version)

        async def collect(model: LocalChatModel = model) -> None:
            async for trace, _ in run(
                agent(model, []), tasks, group=6, checklist=checklist, store=store, lockstep=True
            ):
                assert trace.failure is None

        asyncio.run(collect())
        groups = list(store.groups(checklist=checklist, policy=model.model_version))
        grpo = GRPO(
            folder,
            tmp_path / f"round-{number}",
            steps=2,
            learning_rate=3e-2,
            peft_config=LORA if number == 0 else None,
        )
        folder = grpo.train(groups)
        assert grpo.report["fresh"] is True
        assert grpo.report["policy"]["behaviour"] == [model.model_version] == [grpo.report["policy"]["before"]]
        version = grpo.report["policy"]["after"]
        assert version != model.model_version
        assert version.partition("+")[0] == fingerprint(AutoModelForCausalLM.from_pretrained(base, dtype="auto"))
        assert {*FILES} < names(folder)
        assert not any(
            file.suffix in (".bin", ".pt", ".md") or file.name == "model.safetensors" for file in folder.iterdir()
        )
        moved.append(load_policy_model(folder))
    assert LocalChatModel.load(folder).model_version == version
    assert len(moved[1].peft_config) == 1
    assert apart(moved[0], moved[1]) > 1e-3


def test_an_adapter_has_one_identity(base: Path, tokenizer: Any, tmp_path: Path, sample: Sampler) -> None:
    start = fingerprint(AutoModelForCausalLM.from_pretrained(base))
    model = adapter_of(base)
    assert fingerprint(model) == start  # it adds nothing yet
    groups = sample(AutoModelForCausalLM.from_pretrained(base), groups=2)
    grpo = GRPO(model, tmp_path / "out", tokenizer=tokenizer, steps=2, learning_rate=1e-2)
    folder = grpo.train(groups)
    name = fingerprint(model)
    assert grpo.report["recomputed"]["calls"] > 0
    assert grpo.report["policy"]["after"] == name != start
    assert name.startswith(f"{start}+")
    assert fingerprint(load_policy_model(folder)) == name
    assert fingerprint(AutoModelForCausalLM.from_pretrained(folder)) == name  # as transformers puts it in
    assert LocalChatModel.load(folder).model_version == name
    copied = copy.deepcopy(model)
    copied.save_pretrained(tmp_path / "again")
    assert (
        fingerprint(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "again")) == name
    )
    with model.disable_adapter():
        assert fingerprint(model) == start
    merged = copied.merge_and_unload()
    assert fingerprint(merged) not in (name, start)
    model.merge_adapter()
    assert fingerprint(model) == fingerprint(merged)
    scaled = load_policy_model(folder)
    for module in scaled.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 2
    assert fingerprint(scaled) != name


def test_the_base_is_untouched_and_handed_back(base: Path, tokenizer: Any, tmp_path: Path, sample: Sampler) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    before, groups = fingerprint(model), sample(model, groups=2)
    for number in range(2):
        grpo = GRPO(model, tmp_path / str(number), tokenizer=tokenizer, steps=1, learning_rate=1e-2, peft_config=LORA)
        grpo.train(groups)
        assert grpo.report["fresh"] is True
    assert fingerprint(model) == before
    assert all(one.requires_grad for one in model.parameters())
    assert not any("lora" in name for name, _ in model.named_modules())
    weights = [(tmp_path / str(number) / "adapter_model.safetensors").read_bytes() for number in range(2)]
    assert weights[0] == weights[1]  # the adapter's first values follow from the seed


def test_a_new_adapter_is_another_run_than_its_base(
    base: Path, tokenizer: Any, tmp_path: Path, sample: Sampler
) -> None:
    """Both begin with the same policy, and another one comes out."""
    model = AutoModelForCausalLM.from_pretrained(base)
    groups = sample(model, groups=2)

    def train(policy: Any) -> Path:
        return GRPO(policy, tmp_path / "out", tokenizer=tokenizer, steps=1, learning_rate=1e-2).train(groups)

    train(adapter_of(base))
    assert train(adapter_of(base)) == tmp_path / "out"  # the same run again
    for other in (model, adapter_of(base, r=2)):
        with pytest.raises(TrainError, match=r"holds the policy of another run .*adapter"):
            train(other)


@pytest.mark.parametrize("kind", [GRPO, SFT, DPO])
def test_a_refused_run_hands_the_model_back_too(
    kind: Any, base: Path, tokenizer: Any, tmp_path: Path, sample: Sampler
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    groups = sample(model, groups=2) if kind is GRPO else []  # with nothing to imitate or prefer, those two refuse
    trainer = kind(model, tmp_path / "out", tokenizer=tokenizer, steps=1, peft_config=LORA)
    with whole_folder(tmp_path / "out"), pytest.raises(TrainError, match=r"another process is writing|no group was"):
        trainer.train(groups)
    assert all(one.requires_grad for one in model.parameters())
    assert not any("lora" in name for name, _ in model.named_modules())


def test_dropout_of_an_adapter_is_off(base: Path, tokenizer: Any, tmp_path: Path, sample: Sampler) -> None:
    groups = sample(AutoModelForCausalLM.from_pretrained(base), groups=2)
    for rate in (0.0, 0.5):
        model = adapter_of(base, lora_dropout=rate)
        GRPO(model, tmp_path / str(rate), tokenizer=tokenizer, steps=3, learning_rate=0.5, args=SGD).train(groups)
    assert apart(load_policy_model(tmp_path / "0.0"), load_policy_model(tmp_path / "0.5")) == 0.0


def test_a_kl_term_pulls_towards_the_policy_as_given(
    base: Path, tokenizer: Any, tmp_path: Path, sample: Sampler
) -> None:
    """For a new adapter that is the adapter switched off."""
    groups = sample(AutoModelForCausalLM.from_pretrained(base), groups=2)
    moved = []
    for beta in (0.0, 1.0):
        args = {"beta": beta}
        grpo = GRPO(base, tmp_path / str(beta), steps=8, learning_rate=1e-2, peft_config=LORA, args=args)
        grpo.train(groups)
        moved.append(grpo.report["off_policy_after"]["kl_per_token"])
        if beta:
            assert grpo.report["history"][0]["kl"] == pytest.approx(0.0, abs=1e-6)
            assert grpo.report["history"][-1]["kl"] > 0
    assert moved[1] < 0.7 * moved[0]


def test_other_adapters_are_not_the_stored_policy(base: Path, tokenizer: Any, tmp_path: Path, sample: Sampler) -> None:
    half(base)
    groups = sample(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), groups=3)
    first = GRPO(base, tmp_path / "first", steps=8, learning_rate=3e-2, peft_config=LORA).train(groups)
    sampler = load_policy_model(first)
    stored = sample(sampler, groups=6, size=8)
    name = fingerprint(sampler)

    def refused(model: Any) -> None:
        grpo = GRPO(model, tmp_path / "no", tokenizer=tokenizer, steps=1, learning_rate=1e-9, policy_version=name)
        with pytest.raises(TrainError, match="stored logprobs are not this policy's"):
            grpo.train(stored)

    GRPO(first, tmp_path / "yes", steps=1, learning_rate=1e-9).train(stored)
    refused(base)  # switched off
    GRPO(first, tmp_path / "more", steps=4, learning_rate=3e-2).train(stored)
    refused(tmp_path / "more")


def test_sft_trains_an_adapter(base: Path, tmp_path: Path, sample: Sampler) -> None:
    groups = sample(AutoModelForCausalLM.from_pretrained(base), groups=2)
    sft = SFT(base, tmp_path / "out", steps=2, learning_rate=1e-2, peft_config=LORA)
    folder = sft.train(groups)
    assert {*FILES} < names(folder)
    assert sft.report["policy"]["after"] == LocalChatModel.load(folder).model_version
    assert "+" in str(sft.report["policy"]["after"])


def preferred() -> Group:
    def rollout(reply: str, reward: float) -> Rollout:
        said = Run(id=reply, messages=(Message.of("user", "A or B?"), Message.of("assistant", reply)))
        return Rollout(trace=Trace.of(said), score=Score(trace_id=reply, reward_version="r:1", reward=reward))

    return Group(key={"task": "letters", "reward": "r:1"}, rollouts=(rollout("A", 1.0), rollout("B", 0.0)))


def test_dpo_trains_an_adapter_and_goes_on_with_it(base: Path, tmp_path: Path) -> None:
    groups = [preferred()]
    first = DPO(base, tmp_path / "one", margin=0.05, steps=2, learning_rate=1e-2, peft_config=LORA)
    again = DPO(first.train(groups), tmp_path / "two", margin=0.05, steps=2, learning_rate=1e-2)
    folder = again.train(groups)
    assert {*FILES} < names(folder)
    for dpo in (first, again):  # the reference is the policy as given
        assert dpo.report["history"][0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert again.report["policy"]["before"] == first.report["policy"]["after"]
    assert LocalChatModel.load(folder).model_version == again.report["policy"]["after"]


def test_dpo_leaves_an_adapter_in_memory_with_no_other_beside_it(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    """TRL puts a copy beside it for reference, over which a second round would stumble."""
    model = adapter_of(base)
    for number in range(2):
        dpo = DPO(model, tmp_path / str(number), tokenizer=tokenizer, steps=1, learning_rate=1e-2)
        dpo.train([preferred()])
        assert dpo.report["history"][0]["loss"] == pytest.approx(0.6931, abs=1e-4)
        assert [*model.peft_config] == ["default"]
    torch.manual_seed(3)
    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    named = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings, adapter_name="mine")
    with pytest.raises(TrainError, match="the model's adapter is called mine; DPO takes its reference from one called"):
        DPO(named, tmp_path / "named", tokenizer=tokenizer, steps=1).train([preferred()])


def test_the_words_of_the_command_line() -> None:
    assert parse_lora("r=8, alpha=16,dropout=0.1,targets=all-linear,rslora=true") == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": "all-linear",
        "use_rslora": True,
    }
    for wrong in ("r", "r=", "r=x", "rank=8", "r=8,r=9", "dropout=a", "r=1.5", "rslora=yes"):
        with pytest.raises(TrainError, match="--lora"):
            parse_lora(wrong)


def test_what_cannot_be_an_adapter_is_refused(base: Path, tokenizer: Any, tmp_path: Path, sample: Sampler) -> None:
    groups = sample(AutoModelForCausalLM.from_pretrained(base), groups=1)

    def refused(message: str, model: Any, peft_config: Any = None) -> None:
        with pytest.raises(TrainError, match=message):
            GRPO(model, tmp_path / "no", tokenizer=tokenizer, steps=1, peft_config=peft_config).train(groups)
        assert not (tmp_path / "no").exists()

    refused("peft_config is a int", base, 3)
    refused("was refused: .*rank", base, {"rank": 3})
    refused("does not fit the model", base, {"target_modules": ["nowhere"]})
    refused("r 0", base, {"r": 0})
    refused("lora_alpha 'x'", base, {"lora_alpha": "x"})
    refused("changes the model below", base, {"init_lora_weights": "pissa"})
    refused("changes its base's own biases", base, {"bias": "all"})
    refused("has an adapter already", adapter_of(base), LORA)
    frozen = adapter_of(base)
    for one in frozen.parameters():
        one.requires_grad_(False)
    refused("no weight of the model is trainable", frozen)
    adapter_of(base).save_pretrained(tmp_path / "plain")
    refused("put into it", AutoModelForCausalLM.from_pretrained(tmp_path / "plain"))
    (tmp_path / "plain" / "adapter_model.safetensors").rename(tmp_path / "plain" / "adapter_model.bin")
    refused("pickles", tmp_path / "plain")
    settings = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "a" / "b" / "gone")
    (tmp_path / "plain" / "adapter_config.json").write_text(json.dumps(settings))
    refused("which is not there", tmp_path / "plain")
