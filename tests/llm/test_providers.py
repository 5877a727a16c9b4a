"""Models by name and address: what goes over the wire."""

from __future__ import annotations

import pytest
from pydantic_ai.messages import ModelRequest, UserPromptPart

from cm2_agent.errors import JudgeRefused
from cm2_agent.llm.client import LLMClient
from cm2_agent.llm.providers import openai_model
from cm2_agent.models.served_name import served_name
from tests.chat_server import ChatServer
from tests.judge_server import FREE

ASKED = [ModelRequest(parts=[UserPromptPart(content="Is it right?")])]


async def asked(server: ChatServer, name: str) -> str:
    client = LLMClient(openai_model(server.base_url, name), of="judge", price=FREE, retries=0)
    try:
        return await client.ask(ASKED, str)
    finally:
        await client.aclose()


@pytest.mark.parametrize("prefix", ["", "openai:", "openai-chat:", "openai-responses:"])
async def test_a_server_is_sent_the_models_name_without_the_provider(prefix: str) -> None:
    with ChatServer(lambda body: "Yes.", serves=("qwen3:8b",)) as server:
        assert await asked(server, f"{prefix}qwen3:8b") == "Yes."
        assert [body["model"] for body in server.bodies] == ["qwen3:8b"]


async def test_a_server_that_has_no_such_model_says_so() -> None:
    with ChatServer(lambda body: "Yes.") as server:
        with pytest.raises(JudgeRefused, match="The model `anthropic:stub` does not exist"):
            await asked(server, "anthropic:stub")
        assert (server.calls, server.refused) == (0, 1)


def test_only_the_providers_of_the_protocol_are_left_out() -> None:
    names = ["openai-chat:a:b", "openai:openai:a", "ollama:a", "a"]
    assert [served_name(name) for name in names] == ["a:b", "openai:a", "ollama:a", "a"]
