"""What an agent behind the proxy is trained on: the same rows as with our own model of the endpoint, field by field."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason='needs the extra: pip install "cm2-agent[server]"')
pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')
pytest.importorskip("torch", reason='needs the extra: pip install "cm2-agent[train]"')
from langchain_openai import ChatOpenAI

from cm2_agent import Checklist, Item, Task, run
from cm2_agent.graphs import agent
from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.server.chat_request import Upstream
from cm2_agent.server.local_proxy import local_proxy
from cm2_agent.store import SQLStore
from cm2_agent.trainers.dataset import build_dataset
from tests.models.transformer_server import TransformerServer
from tests.models.vllm_server import Server, running

KNOWN: dict[str, Any] = {"logprobs_mode": "raw", "model_version": "v7"}
TASK = Task(id="t1", turns=("Where is order 7?", "And order 8?"))


def get_order(order_id: int) -> str:
    """Look an order up."""
    return json.dumps({"order": order_id, "status": "shipped"})


def ends_even(view: Any) -> bool:
    """The codes of the reply's characters have an even sum, as a policy that draws its words may have it."""
    return bool(view.reply) and sum(map(ord, view.reply)) % 2 == 0


CHECKLIST = Checklist(Item("looks", check={"called": "get_order"}), Item("even", check=ends_even), name="rows")


def policy(tokenizer: Any) -> Any:
    """A Qwen3 of one layer and 16 channels, its weights drawn from a seed."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    rest = {"head_dim": 16, "intermediate_size": 32, "max_position_embeddings": 2048, "initializer_range": 0.1}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **rest, **ends))


def rows(make: Callable[[Server], Any], url: str, *, proxied: bool) -> list[Any]:
    """The rows of three rollouts, one after the other, at each level of credit."""
    tokenizer = byte_tokenizer()

    async def collect(model: Any) -> None:
        async for trace, _ in run(
            agent(model, [get_order]),
            [TASK],
            group=3,
            checklist=CHECKLIST,
            store=store,
            allow_real=["get_order"],
            concurrency=1,
        ):
            assert trace.failure is None

    with running(TransformerServer(policy(tokenizer), tokenizer)) as server, SQLStore(url) as store:
        if proxied:
            with local_proxy(server.address, Upstream(server="vllm", **KNOWN)) as proxy:
                asyncio.run(collect(make(server)))
            assert proxy.calls == len(server.asked) == 12
        else:
            asyncio.run(collect(make(server)))
        groups = list(store.groups(checklist=CHECKLIST))
    return [
        (level, [fields(row) for group in build_dataset(groups, level=level).groups for row in group.rows])
        for level in ("trajectory", "turn", "step")
    ]


def fields(row: Any) -> dict[str, Any]:
    found = {name: tuple(getattr(row, name)) for name in ("ids", "mask", "logprobs", "advantages", "places")}
    return {
        **found,
        "temperature": row.temperature,
        "policy": row.policy,
        "exact": row.exact,
        "grpo": row.trainable_by_grpo,
    }


def test_rows_of_a_proxied_run_are_those_of_our_own_model(tmp_path: Path) -> None:
    ours = rows(
        lambda server: server.model(streaming=True, **KNOWN), f"sqlite:///{tmp_path / 'ours.db'}", proxied=False
    )
    theirs = rows(
        lambda server: ChatOpenAI(model="m", api_key="none", streaming=True, stream_usage=True, max_retries=0),  # type: ignore[arg-type]
        f"sqlite:///{tmp_path / 'theirs.db'}",
        proxied=True,
    )
    assert theirs == ours
    for _, found in ours:
        assert len(found) >= 3
        assert all(row["grpo"] and row["exact"] and sum(row["mask"]) > 40 for row in found)
        assert max(len({place for place in row["places"] if place}) for row in found) > 1  # a row of several steps
        assert any(value for row in found for value in row["advantages"])
