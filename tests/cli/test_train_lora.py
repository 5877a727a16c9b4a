"""`cm2 train --lora` and `cm2 policy merge`: from a model to an adapter, and to one model again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from tests.cli_runner import CliRunner


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(byte_tokenizer())}
    network: Any = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    network.to(torch.bfloat16).save_pretrained("tiny")
    byte_tokenizer().save_pretrained("tiny")
    with SQLStore("sqlite:///cm2.db") as store:
        store.save_run(Run(id="a", messages=(Message.of("user", "Hi"), Message.of("assistant", "Hello"))))
    return tmp_path


def cm2(*words: str) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout or "{}"), done.stderr


SFT = (
    "train",
    "--algorithm",
    "sft",
    "--model",
    "tiny",
    "--out",
    "adapter",
    "--steps",
    "1",
    "--set",
    "learning_rate=0.05",
)


def test_from_a_model_to_an_adapter_and_to_one_model(here: Path) -> None:
    code, report, error = cm2(*SFT, "--lora", "r=2,alpha=4,targets=q_proj+v_proj")
    assert code == 0, error
    settings = json.loads((here / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], sorted(settings["target_modules"])) == (2, 4, ["q_proj", "v_proj"])
    code, merged, error = cm2("policy", "merge", "adapter", "one")
    assert code == 0, error
    assert merged["adapter"] == report["policy"]["after"]
    assert "+" not in merged["version"]
    assert json.loads((here / "one" / "config.json").read_text())["dtype"] == "bfloat16"
    again = ("train", "--algorithm", "sft", "--model", "one", "--out", "two", "--steps", "1")
    code, report, error = cm2(*again)
    assert code == 0, error
    assert report["policy"]["before"] == merged["version"]


def test_what_cannot_be_meant_is_said(here: Path) -> None:
    for words, said in [
        ((*SFT, "--lora", "rank=2"), "--lora 'rank=2': 'rank=2' cannot be read; expected r=…"),
        (("train", "--rows-only", "--lora", "r=2"), "leave --algorithm, --lora and --set out"),
        (("policy", "merge", "tiny", "one"), "'tiny' is no adapter"),
    ]:
        code, _, error = cm2(*words)
        assert code == 2
        assert said in " ".join(error.split())
    (here / "one").mkdir()
    assert cm2(*SFT, "--lora", "r=2")[0] == 0
    code, _, error = cm2("policy", "merge", "adapter", "one")
    assert (code, "exists; name a folder" in error) == (2, True)
