"""A trained adapter's folder: its version is the trainer's, whether or not a report has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason='needs the extra: pip install "cm2-agent[train]"')

from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from cm2_agent.models import byte_tokenizer, fingerprint
from cm2_agent.models.loading import load_policy_model
from cm2_agent.models.trained_adapter import TrainedAdapter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, and an adapter over it that changes something."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    size: Any = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 16,
    }
    base = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, **size))
    for one in (base, tokenizer):
        one.save_pretrained(tmp_path / "base")
    loaded = Qwen3ForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 5}, init_lora_weights=False)
    get_peft_model(loaded, config).save_pretrained(str(tmp_path / "policy"))
    return tmp_path / "policy"


def test_the_version_is_the_fingerprint(folder: Path) -> None:
    found = TrainedAdapter.read(folder)
    assert found.version == fingerprint(load_policy_model(folder))
    assert found.version.startswith(f"{fingerprint(Qwen3ForCausalLM.from_pretrained(folder.parent / 'base'))}+")
    assert (Path(found.base).name, found.rank) == ("base", 5)


@pytest.mark.parametrize(
    "report", ["{", "[]", '{"policy": "x"}', '{"policy": {"after": 7}}', '{"policy": {"after": ""}}']
)
def test_a_report_that_names_no_policy_is_passed_over(folder: Path, report: str) -> None:
    (folder / "report.json").write_text(report)
    assert "+" in TrainedAdapter.read(folder).version


def test_the_report_saves_loading_the_base(folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps({"policy": {"after": "a+b"}}))
    (folder.parent / "base" / "model.safetensors").unlink()
    assert TrainedAdapter.read(folder).version == "a+b"


def test_the_folders_own_prompt(folder: Path) -> None:
    found, tokenizer = TrainedAdapter.read(folder), byte_tokenizer()
    messages = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert found.writes(messages, ids) is None  # no tokenizer in the folder
    tokenizer.save_pretrained(folder)
    assert found.writes(messages, ids) is True
    assert found.writes(messages, ids[1:]) is False
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    tokenizer.save_pretrained(folder)
    assert found.writes(messages, ids) is None
