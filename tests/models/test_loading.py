"""Loading a policy: no code of a folder runs or is asked about, no pickle is read, and adapters find their base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cm2_agent.errors import ModelError
from cm2_agent.models import LocalChatModel, byte_tokenizer, fingerprint, merge_adapter
from cm2_agent.models.loading import load_config, load_policy_model, load_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CODE = "open('ran', 'w').write('x')\nfrom transformers import LlamaForCausalLM as Own, LlamaConfig as OwnConfig\n"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(byte_tokenizer()), **SIZES)).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base: Path, folder: Path, **settings: Any) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **settings)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    return folder


def rewrite(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize("loads", [load_policy_model, load_tokenizer, load_config, LocalChatModel.load])
def test_code_of_a_folder_never_runs(base: Path, tmp_path: Path, loads: Any) -> None:
    (base / "own.py").write_text(CODE)
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    rewrite(base / "config.json", model_type="own", auto_map=named)
    rewrite(base / "tokenizer_config.json", tokenizer_class="Own", auto_map=named)
    if loads is load_tokenizer:  # tokenizer.json is read without any class
        (base / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"needs code of its own \(auto_map AutoConfig: own\.OwnConfig.*never run"):
        loads(base)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_that_is_known_is_not_needed(base: Path, tmp_path: Path) -> None:
    (base / "own.py").write_text(CODE)
    rewrite(base / "config.json", auto_map={"AutoModelForCausalLM": "own.Own"})
    assert type(load_policy_model(base)) is LlamaForCausalLM
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ModelError, match="no code of a model's folder is ever run"):
        LocalChatModel.load(base, model_options={"trust_remote_code": True})


def test_pickles_are_not_read(base: Path, tmp_path: Path) -> None:
    state = load_policy_model(base).state_dict()
    torch.save(state, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="are pickles, which can hold code and are not read"):
        load_policy_model(base)


def test_an_adapter_finds_its_base_where_it_was_moved(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    name = fingerprint(load_policy_model(folder))
    (tmp_path / "elsewhere").mkdir()
    for one in (base, folder):
        shutil.move(one, tmp_path / "elsewhere" / one.name)
    moved = tmp_path / "elsewhere" / "adapter"
    assert LocalChatModel.load(moved).model_version == name  # its tokenizer is the base's
    shutil.move(tmp_path / "elsewhere" / "base", tmp_path / "gone")
    with pytest.raises(ModelError, match="which is not there; give its place"):
        load_policy_model(moved)
    assert fingerprint(load_policy_model(moved, base=tmp_path / "gone")) == name
    with pytest.raises(ModelError, match="is no adapter"):
        load_policy_model(tmp_path / "gone", base=tmp_path / "gone")


def test_an_adapter_over_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    other = LlamaForCausalLM(LlamaConfig(vocab_size=len(byte_tokenizer()), **{**SIZES, "hidden_size": 32}))
    with pytest.raises(ModelError, match="does not fit its base: size mismatch for"):
        load_policy_model(folder, base=other)
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.nowhere.lora_A.weight"] = weights.pop(min(weights))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"does not fit its base: 1 weights are missing .*, 1 have no place"):
        load_policy_model(folder)
    rewrite(folder / "adapter_config.json", peft_type="LOHA")
    with pytest.raises(ModelError, match="an adapter of type LOHA; expected LORA"):
        load_policy_model(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read"):
        load_policy_model(folder)


def test_a_merged_adapter_computes_the_same_and_is_another_policy(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    merged = merge_adapter(folder, tmp_path / "merged")
    one, two = load_policy_model(folder).eval(), load_policy_model(merged).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(one(ids).logits, two(ids).logits, atol=1e-5)
    assert fingerprint(two) not in (fingerprint(one), fingerprint(load_policy_model(base)))
    with pytest.raises(ModelError, match="exists; name a folder"):
        merge_adapter(folder, merged)
    with pytest.raises(ModelError, match="is no adapter"):
        merge_adapter(base, tmp_path / "other")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", "base", "merged"]


def test_weights_that_were_cut_off_are_named(base: Path) -> None:
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="are cut off or broken"):
        load_policy_model(base)
