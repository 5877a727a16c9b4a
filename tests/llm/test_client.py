"""LLMClient: what a call costs where the reply does not say, and a server that cannot hold replies to a schema."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from cm2_agent.errors import BudgetExhausted
from cm2_agent.llm.client import LLMClient, RequestFailed, Schema
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price, cost
from cm2_agent.llm.providers import openai_model
from cm2_agent.llm.usage import metered
from tests.chat_server import ChatServer, Fault
from tests.judge_server import FREE

ASKED: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart(content="Is it right? " * 100)])]
DOLLAR = Price(input=1_000_000, output=1_000_000)  # a token a dollar
FORM: dict[str, Any] = {"type": "object", "properties": {"right": {"type": "boolean"}}}
_OPEN: list[LLMClient] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    yield
    while _OPEN:
        await _OPEN.pop().aclose()


def client(model: Any, **options: Any) -> LLMClient:
    _OPEN.append(LLMClient(model, of="judge", **{"price": FREE, "retries": 0, "backoff": 0.0, **options}))
    return _OPEN[-1]


def completion(text: str, usage: Any) -> Fault:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    return Fault(body=json.dumps({**head, "choices": [choice]} | ({} if usage is None else {"usage": usage})))


@pytest.mark.parametrize(
    ("usage", "tokens", "estimated"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, (9, 2), 0),
        (None, (325, 9), 1),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "total_tokens": 61,
                "completion_tokens_details": {"reasoning_tokens": 50},
            },
            (9, 52),
            0,
        ),
    ],
)
async def test_a_reply_that_does_not_say_what_it_took_is_estimated(
    usage: Any, tokens: tuple[int, int], estimated: int
) -> None:
    with ChatServer(lambda body: completion("Yes, it is. " * 3, usage)) as server, metered() as meter:
        asking = client(openai_model(server.base_url, "stub"), price=DOLLAR)
        await asking.ask(ASKED, str)
        took = asking.usage
        assert (took.input_tokens, took.output_tokens) == tokens
        assert took.usd == pytest.approx(sum(tokens))
        assert took.estimated == meter.estimated == asking.limits.usage.estimated == estimated
        assert ("estimated" in took.to_json()) is bool(estimated)


async def test_a_request_without_an_answer_in_time_may_have_cost_as_much() -> None:
    with ChatServer(lambda body: Fault(text="Yes.", delay=30.0)) as server:
        limits = RateLimits(budget_usd=1000.0)
        asking = client(openai_model(server.base_url, "stub"), price=DOLLAR, limits=limits, timeout=0.2)
        for _ in range(2):
            with pytest.raises(RequestFailed, match="no answer within"):
                await asking.ask(ASKED, str, answer_tokens=100)
        assert limits.spent_usd == 850.0
        assert asking.usage.estimated == 2
        with pytest.raises(BudgetExhausted):
            await asking.ask(ASKED, str, answer_tokens=100)
        assert server.calls == 2


async def test_a_request_that_was_refused_cost_nothing() -> None:
    with ChatServer(lambda body: Fault(status=503)) as server:
        asking = client(openai_model(server.base_url, "stub"), price=DOLLAR)
        with pytest.raises(RequestFailed):
            await asking.ask(ASKED, str)
        assert (asking.usage.usd, asking.usage.calls, asking.usage.estimated) == (0.0, 1, 0)


def test_writing_a_providers_cache_has_its_own_price() -> None:
    plain = cost("claude-sonnet-4-5", 100_000, 0, provider="anthropic")
    written = cost("claude-sonnet-4-5", 100_000, 0, provider="anthropic", cache_write_tokens=100_000)
    assert plain is not None
    assert written == pytest.approx(plain * 1.25)


class Claude(FunctionModel):
    """A scripted model by a seller's name, whose price is known."""

    @property
    def system(self) -> str:
        return "anthropic"


async def test_the_cache_that_a_reply_wrote_is_paid() -> None:
    def function(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        usage = RequestUsage(input_tokens=100_000, output_tokens=1, cache_write_tokens=100_000)
        return ModelResponse(parts=[TextPart(content="Yes.")], usage=usage)

    asking = client(Claude(function, model_name="claude-sonnet-4-5"), price=None)
    await asking.ask(ASKED, str)
    assert asking.usage.usd == pytest.approx(0.375, rel=0.01)


def refusing(message: str) -> Callable[[dict[str, Any]], Any]:
    """A server that knows no schema, and says so."""
    error = Fault(status=400, body=json.dumps({"error": {"message": message, "type": "invalid_request_error"}}))
    return lambda body: error if "response_format" in body else '{"right": true}'


MESSAGES = (
    "response_format json_schema is not supported",
    "This response_format type is unavailable now",
    "structured output is not enabled for this model",
)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("everywhere", [False, True], ids=["a schema of the request", "a schema of the model"])
async def test_a_server_without_schemas_is_asked_without_one(message: str, everywhere: bool) -> None:
    with ChatServer(refusing(message)) as server:
        schema = ("form", FORM) if everywhere else None
        model = openai_model(server.base_url, "stub", schema=schema, settings={"extra_body": {"seed": 7}})
        asking = client(model)
        for _ in range(2):
            assert await asking.ask(ASKED, str, schema=Schema(name="form", body=FORM)) == '{"right": true}'
        assert ["response_format" in body for body in server.bodies] == [True, False, False]
        assert [body.get("seed") for body in server.bodies] == [7, 7, 7]
        assert asking.usage.calls == 3


@pytest.mark.parametrize(("status", "message"), [(400, "the prompt is too long"), (401, "bad key for response_format")])
async def test_other_refusals_are_no_matter_of_schemas(status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message}})
    with ChatServer(lambda _: Fault(status=status, body=body)) as server:
        asking = client(openai_model(server.base_url, "stub", schema=("form", FORM)))
        with pytest.raises(RequestFailed):
            await asking.ask(ASKED, str)
        assert server.calls == (1 if status == 400 else 2)
        assert (asking.refused is not None) is (status == 401)


def texts(replies: Sequence[str]) -> FunctionModel:
    said = iter(replies)
    return FunctionModel(lambda messages, info: ModelResponse(parts=[TextPart(content=next(said))]))


async def test_a_free_model_is_one_whose_price_is_nothing() -> None:
    assert client(texts([])).is_free
    assert not client(texts([]), price=None).is_free
    assert not client(texts([]), price=Price(input=1, output=0)).is_free
