"""The models that a judge can ask: over HTTP, LangChain, a local transformer; and how a wrong name is refused."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import warnings
from typing import Any

import pytest
import torch
from langchain_core.language_models import FakeListChatModel
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from transformers import Qwen3Config, Qwen3ForCausalLM

from cm2_agent.errors import JudgeError, MissingExtra
from cm2_agent.models.local import LocalChatModel
from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.rewards.judges.client import judge_model, openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from tests.judge_server import FREE, Fault, JudgeServer
from tests.rewards.judges import judging as shared
from tests.rewards.judges.judging import DATE, GOOD, ONE

closed = shared.closed


def test_a_judge_serves_one_event_loop_after_another() -> None:
    """A connection left from a closed loop would lose a reply that was paid for."""
    with JudgeServer() as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, retries=0)

        async def once() -> bool | None:
            (got,) = await judge(ONE, 0, [DATE])
            await judge.aclose()
            return got.value

        async def left_open() -> bool | None:
            return (await judge(ONE, 0, [DATE]))[0].value

        assert [asyncio.run(once()) for _ in range(3)] == [True] * 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            assert [asyncio.run(left_open()) for _ in range(3)] == [True] * 3
        assert server.calls == 6


async def test_a_langchain_model_judges_too() -> None:
    judge = LLMJudge(FakeListChatModel(responses=[GOOD, "no idea"]), retries=0)
    assert [verdict.value for verdict in await judge(ONE, 0, [DATE])] == [True]
    assert [verdict.cause for verdict in await judge(ONE, 0, [DATE])] == ["infrastructure"]


@pytest.mark.parametrize("knows", ["json_schema", "json_object", None])
async def test_a_langchain_model_of_a_server_is_asked_as_far_as_the_server_goes(knows: str | None) -> None:
    refusal = json.dumps(
        {"error": {"message": "this response_format is not supported", "type": "invalid_request_error"}}
    )
    kinds = ["json_schema", "json_object", None]

    class Server(JudgeServer):
        async def _answer(self, body: dict[str, Any]) -> bytes | None:
            kind = body["response_format"]["type"] if "response_format" in body else None
            if kinds.index(kind) < kinds.index(knows):
                self.faults.appendleft(Fault(status=400, body=refusal))
            return await super()._answer(body)

    with Server() as server:
        chat = ChatOpenAI(model="stub", base_url=server.base_url, api_key=SecretStr("none"), max_retries=0)
        judge = LLMJudge(chat, price=FREE, retries=0)
        for _ in range(2):
            assert [verdict.value for verdict in await judge(ONE, 0, [DATE])] == [True]
        assert server.calls == kinds.index(knows) + 2, "what worked is remembered"
        assert judge.usage.calls == server.calls


def babbler(context: int) -> LocalChatModel:
    """An untrained transformer that reads so many tokens."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer: Any = byte_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LocalChatModel(
        model=Qwen3ForCausalLM(config).eval(), tokenizer=tokenizer, max_tokens=8, model_version="babbler-1"
    )


async def test_a_local_transformer_judges_through_the_same_door() -> None:
    """Untrained, it babbles: its reply is malformed or cut off, which is NULL, and its tokens are counted."""
    local = babbler(8192)
    judge = LLMJudge(local, settings={"temperature": 0.5, "max_tokens": 6}, budget_usd=0.0, retries=0)
    assert judge.is_free, "it runs in this process"
    (got,) = await judge(ONE, 0, [DATE])
    assert (got.value, got.cause) == (None, "infrastructure")
    assert judge.usage.calls == 1
    assert judge.usage.input_tokens > 1000
    assert 1 <= judge.usage.output_tokens <= 6
    assert judge.name == "langchain:babbler-1"


async def test_a_transcript_too_long_for_a_local_transformer_is_the_contents_doing() -> None:
    judge = LLMJudge(babbler(256), retries=3, backoff=0)
    (got,) = await judge(ONE, 0, [DATE])
    assert (got.value, got.reason, got.cause) == (None, "judge failed", "content")
    assert "too long for the judge" in (got.explanation or "")
    assert judge.usage.calls == 1


@pytest.mark.skipif(importlib.util.find_spec("anthropic") is not None, reason="the provider's package is installed")
def test_a_missing_provider_package_is_told_with_the_pip_line() -> None:
    with pytest.raises(MissingExtra, match=r'pip install "cm2-agent\[anthropic\]"'):
        judge_model("anthropic:claude-haiku-4-5")


@pytest.mark.parametrize("name", ["nonsense", "nobody:model", ""])
def test_a_name_that_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(JudgeError, match=r"[Ee]xpected"):
        judge_model(name)


@pytest.mark.skipif("OPENAI_API_KEY" in os.environ, reason="a key is set")
def test_a_key_that_is_not_set_is_told() -> None:
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        judge_model("openai:gpt-5-mini")
