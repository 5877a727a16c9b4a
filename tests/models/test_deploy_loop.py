"""The whole round over a server: collect, train an adapter, deploy it, collect from it, and train again; the policy's
name at the server is the trainer's, so that stored calls are computed again each time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')
pytest.importorskip("peft", reason='needs the extra: pip install "cm2-agent[train]"')

from langchain_core.messages import convert_to_messages
from transformers import Qwen3Config, Qwen3ForCausalLM

from cm2_agent import GRPO, Checklist, Item, LocalChatModel, SQLStore, Task, openai_compatible, run
from cm2_agent.graphs import agent
from cm2_agent.models import byte_tokenizer, deploy, fingerprint
from tests.models.lora_servers import VLLM

LETTERS = Checklist(
    Item("a_letter", check={"reply_matches": "[a-m]"}),
    Item("a_digit", check={"reply_matches": "[0-9]"}),
    name="letters",
)
TASKS = [Task(id=f"t{number}", turns=(f"Say something, {number}.",)) for number in range(2)]


class ModelServer(VLLM):
    """vLLM's wire with real models behind it: the base model, and each adapter over it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(serves=fingerprint(Qwen3ForCausalLM.from_pretrained(folder)), root=str(folder))
        self.policies = {self.serves: LocalChatModel.load(folder, max_tokens=6)}
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def completion(self, body: Mapping[str, Any], adapter: str | None, seed: int) -> dict[str, Any]:
        name, asked = adapter or self.serves, json.dumps([adapter, body["messages"]])
        with self.lock:  # the n-th answer to a prompt is the same in whatever order the requests come
            if name not in self.policies:
                self.policies[name] = LocalChatModel.load(self.adapters[name], max_tokens=6)
            self.asked[asked] += 1
            own = {"temperature": body["temperature"], "seed": self.asked[asked]}
            message = self.policies[name].model_copy(update=own).invoke(convert_to_messages(body["messages"]))
        meta = message.response_metadata
        ids = meta["completion_ids"]
        tokens = [
            {"token": f"token_id:{number}", "logprob": value, "bytes": None, "top_logprobs": []}
            for number, value in zip(ids, meta["logprobs"], strict=True)
        ]
        prompt = len(meta["prompt_ids"])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": message.text},
            "logprobs": {"content": tokens},
            "finish_reason": meta["finish_reason"],
        }
        usage = {"prompt_tokens": prompt, "completion_tokens": len(ids), "total_tokens": prompt + len(ids)}
        made = {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        return {**made, "usage": usage, "prompt": meta["prompt_ids"], "ids": ids}


@pytest.mark.slow
def test_two_rounds_over_one_server(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save(base)
    store = SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}")
    with ModelServer(base) as server:
        name = version = server.serves
        source = base
        for number in range(2):
            model = openai_compatible(server.url, name, token_ids=True, model_version=version)
            asyncio.run(collect(model, store))
            out = tmp_path / f"policy{number}"
            lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} if number == 0 else None
            trainer = GRPO(model=source, out=out, steps=2, learning_rate=5e-2, peft_config=lora)
            trainer.train(store.groups(checklist=LETTERS, policy=version))
            report: Any = trainer.report
            assert report["policy"]["behaviour"] == [report["policy"]["before"]] == [version]
            assert report["recomputed"]["mean_abs"] < 1e-4
            deployed = deploy(out, server.url, replace=None if number == 0 else name)
            assert deployed.version == report["policy"]["after"] != version
            assert deployed.same_prompt is True
            assert list(server.adapters) == [deployed.name]
            name, version, source = deployed.model, deployed.version, out


async def collect(model: Any, store: SQLStore) -> None:
    async for trace, _ in run(agent(model, tools=[]), TASKS, group=6, checklist=LETTERS, store=store):
        assert all(call.untrainable is None for call in trace.calls), [call.untrainable for call in trace.calls]


def save(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    size: Any = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, **size, **ends)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
