"""`check_model` on folders with weights: each kind of what keeps one from being trained is named, as loading does."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from cm2_agent.cli.app import app
from cm2_agent.errors import ModelError, TrainError
from cm2_agent.models import LocalChatModel, byte_tokenizer, check_model
from cm2_agent.trainers.policy import load_policy
from tests.cli_runner import CliRunner

TOKENS = len(byte_tokenizer())
SIZES: dict[str, Any] = {
    "vocab_size": TOKENS,
    "eos_token_id": byte_tokenizer().eos_token_id,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def saved(folder: Path, network: Any = None, tokenizer: Any = None) -> Path:
    torch.manual_seed(0)
    (LlamaForCausalLM(LlamaConfig(**SIZES)) if network is None else network).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path) -> Path:
    torch.manual_seed(1)
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(str(folder))
    return folder


def rewrite(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def own_code(folder: Path) -> None:
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    rewrite(folder / "config.json", model_type="own", auto_map=named)
    (folder / "own.py").write_text("raise SystemExit('ran')\n")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def sharded(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    files = {name: f"model-{1 + number % 2:05}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_file(
            {name: state[name] for name in names if files[name] == file}, folder / file, metadata={"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "model.safetensors").unlink()


def a_shard_gone(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def an_index_of_nothing(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


def other_tokenizer(folder: Path) -> None:
    byte_tokenizer([f"word{number}" for number in range(50)]).save_pretrained(folder)


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "own code": (own_code, "needs code of its own (auto_map AutoConfig: own.OwnConfig, auto_map AutoModelForCausalLM"),
    "pickles": (pickled, "the weights are pickles (pytorch_model.bin), which can hold code and are not read"),
    "no weights": (
        lambda one: (one / "model.safetensors").unlink(),
        "there are no weights; expected model.safetensors",
    ),
    "cut off": (cut, "model.safetensors is cut off or broken"),
    "empty": (lambda one: (one / "model.safetensors").write_bytes(b""), "model.safetensors is cut off or broken"),
    "git lfs": (
        lambda one: (one / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        ),
        "model.safetensors is a pointer of Git LFS",
    ),
    "a shard gone": (a_shard_gone, "model-00002-of-00002.safetensors is missing, which model.safetensors.index.json"),
    "an index of nothing": (
        an_index_of_nothing,
        "holds a list; expected a JSON object",
    ),
    "another name": (
        lambda one: (one / "model.safetensors").rename(one / "consolidated.safetensors"),
        "there is no model.safetensors (there is consolidated.safetensors)",
    ),
    "gguf": (
        lambda one: (one / "model.safetensors").rename(one / "m.gguf"),
        "the weights are GGUF (m.gguf); expected model.safetensors",
    ),
    "a weight gone": (
        lambda one: weights(one, lambda state: state.pop("lm_head.weight")),
        "1 weight is missing in",
    ),
    "another vocab_size": (
        lambda one: rewrite(one / "config.json", vocab_size=300),
        "2 weights are in '{folder}' of another size than its config.json says: lm_head.weight has",
    ),
    "another tokenizer": (other_tokenizer, "of the tokenizer's 317 tokens, such as 'word0' (267), have no row in the"),
    "no config.json": (lambda one: (one / "config.json").unlink(), "there are weights and no config.json"),
    "broken config.json": (lambda one: (one / "config.json").write_text("{"), "cannot read config.json"),
    "a config.json too deep": (
        lambda one: (one / "config.json").write_text('{"a":' * 100_000),
        "cannot read config.json",
    ),
    "a field of another type": (
        lambda one: rewrite(one / "config.json", hidden_size="x"),
        "Field 'hidden_size' expected int, got str",
    ),
    "unknown model_type": (
        lambda one: rewrite(one / "config.json", model_type="nosuch"),
        "nosuch",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_named_and_exits_1(kind: str, tmp_path: Path) -> None:
    change, words = KINDS[kind]
    folder = saved(tmp_path / "model")
    change(folder)
    found = check_model(folder)
    wanted = words.format(folder=folder)
    assert any(wanted in problem for problem in found.problems), found.problems
    done = CliRunner().invoke(app, ["model", "check", str(folder), "--json", "--no-tokens"])
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["problems"] == found.problems
    with pytest.raises(ModelError):  # another tokenizer is found by the prompt that needs it
        LocalChatModel.load(folder).invoke("word7")


def encoder() -> Any:
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return BertForMaskedLM(BertConfig(vocab_size=TOKENS, **small))


def bart() -> Any:
    small: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    small |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return BartForConditionalGeneration(BartConfig(vocab_size=TOKENS, **small))


def vision() -> Any:
    text = {**SIZES, "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    sees = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sees))


NOT_CAUSAL: dict[str, tuple[Callable[[], Any], str]] = {
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=TOKENS, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
        ),
        "no causal language model that transformers has a class for (model_type 't5', an encoder and a decoder)",
    ),
    "vision and language": (vision, "(model_type 'qwen2_5_vl', which reads images too: take a text-only model)"),
    "mamba": (
        lambda: MambaForCausalLM(MambaConfig(vocab_size=TOKENS, hidden_size=16, num_hidden_layers=1, state_size=4)),
        "(MambaForCausalLM) takes no past_key_values, by which it would be sampled",
    ),
    "bert": (encoder, "(BertForMaskedLM) is an encoder: it does not write one token after the other"),
    "bart": (bart, "(BartForConditionalGeneration) is an encoder and a decoder"),
    "classifier": (lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES)), "missing in"),
}


@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_what_is_no_causal_language_model_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    network, words = NOT_CAUSAL[kind]
    folder = saved(tmp_path / "model", network())
    assert any(words in problem for problem in check_model(folder).problems)
    with pytest.raises(ModelError) as error:
        LocalChatModel.load(folder)
    assert words in str(error.value)
    assert len(str(error.value)) < 500  # transformers lists every class that it has


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        sharded,
        lambda one: torch.save({}, one / "pytorch_model.bin"),
        lambda one: rewrite(one / "config.json", architectures=5),
    ],
)
def test_a_sound_model(change: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    change(folder)
    found = check_model(folder)
    assert found.problems == []
    assert found.weights.startswith("LlamaForCausalLM, 0.01 M parameters in float32, ")
    assert found.weights.endswith("2 files" if change is sharded else "1 file")
    assert CliRunner().invoke(app, ["model", "check", str(folder)]).exit_code == 0
    assert any("pickles" in note for note in found.notes) is (folder / "pytorch_model.bin").exists()


def test_code_beside_a_known_model_is_a_note(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    rewrite(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.Own"})
    (folder / "own.py").write_text("raise SystemExit('ran')\n")
    found = check_model(folder)
    assert found.problems == []
    assert [note.partition(" (")[0] for note in found.notes] == ["it names code of its own", "it holds code"]


def test_rows_of_the_embedding_and_tokens(tmp_path: Path) -> None:
    padded = saved(tmp_path / "padded", LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 320})))
    assert check_model(padded).notes == ["the embedding has 320 rows, 53 more than the tokenizer has tokens"]
    unused = byte_tokenizer()
    unused.add_special_tokens({"additional_special_tokens": ["<image>"]})
    found = check_model(saved(tmp_path / "image", tokenizer=unused))
    assert found.problems == []
    assert any(
        "such as '<image>' (267), have no row in the embedding of 267: no dialogue" in one for one in found.notes
    )


def test_adapters(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    folder = adapter(base, tmp_path / "adapter")
    found = check_model(folder)
    assert found.problems == []
    assert found.weights == f"LoRA of rank 2 over {base}: LlamaForCausalLM, 0.01 M parameters in float32, 1 file"
    assert found.stops == check_model(base).stops

    def problems(change: Callable[[Path, Path], Any]) -> str:
        below, above = tmp_path / "changed" / "base", tmp_path / "changed" / "adapter"
        shutil.rmtree(tmp_path / "changed", ignore_errors=True)
        shutil.copytree(base, below)
        shutil.copytree(folder, above)
        rewrite(above / "adapter_config.json", base_model_name_or_path=str(below))
        change(below, above)
        assert CliRunner().invoke(app, ["model", "check", str(above)]).exit_code == 1
        return "\n".join(check_model(above).problems)

    assert "its base cannot be found" in problems(lambda below, _: shutil.rmtree(below))
    named = problems(lambda _, above: rewrite(above / "adapter_config.json", base_model_name_or_path="org/not-here"))
    assert "its base cannot be found: there is no folder 'org/not-here'" in named
    assert "does not say what model it is over" in problems(
        lambda _, above: rewrite(above / "adapter_config.json", base_model_name_or_path=None)
    )
    gone = problems(lambda _, above: (above / "adapter_model.safetensors").unlink())
    assert "there are no weights; expected adapter_model.safetensors" in gone
    assert "model.safetensors is cut off or broken" in problems(lambda below, _: cut(below))
    assert "its base" in problems(lambda below, _: (below / "model.safetensors").unlink())
    wider = problems(lambda below, _: saved(below, LlamaForCausalLM(LlamaConfig(**{**SIZES, "hidden_size": 32}))))
    assert "does not fit its base: size mismatch" in wider
    twice = problems(lambda _, above: rewrite(above / "adapter_config.json", base_model_name_or_path=str(folder)))
    assert "is an adapter itself" in twice
    assert "cannot read adapter_config.json" in problems(
        lambda _, above: (above / "adapter_config.json").write_text("{")
    )
    other = problems(lambda _, above: rewrite(above / "adapter_config.json", peft_type="LOHA"))
    assert "LOHA" in other


def test_a_base_checkpoint_without_a_chat_template(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()._tokenizer, eos_token="<|im_end|>")
    found = check_model(saved(tmp_path / "model", tokenizer=tokenizer))
    assert found.weights.startswith("LlamaForCausalLM")
    assert [one.partition(";")[0] for one in found.problems] == ["the tokenizer has no chat template"]


def test_neither_a_model_nor_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load a tokenizer"):
        check_model(tmp_path)
    with pytest.raises(ModelError, match="there is no folder"):
        check_model(tmp_path / "gone")


def test_a_padding_token_without_a_row(tmp_path: Path) -> None:
    """As when it was added to the tokenizer alone. Sampling masks it and goes on; training would look it up."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    folder = saved(tmp_path / "model", tokenizer=tokenizer)
    assert any("such as '[PAD]' (267), have no row in the embedding" in one for one in check_model(folder).problems)
    model = LocalChatModel.load(folder, max_tokens=2)
    for message in asyncio.run(model.abatch(["Hi", "Hello you"])):
        assert message.response_metadata["completion_ids"]
    with pytest.raises(TrainError, match=r"the padding token '\[PAD\]' \(267\) has no row"):
        load_policy(folder)
