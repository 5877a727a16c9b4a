"""LLMClient: what a call costs, also where the reply does not say, and what is read as its text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from cm2_agent.errors import BudgetExhausted, JudgeError, JudgeRefused
from cm2_agent.llm.client import LLMClient
from cm2_agent.llm.failures import MalformedReply, RequestFailed
from cm2_agent.llm.langchain_model import LangChainModel
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
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, (325, 9), 1),
        ({"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}, (9, 9), 1),
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


def test_a_model_that_answers_needs_no_rest() -> None:
    asking = client(texts([]), backoff=4.0)
    unreadable = asking.failure(MalformedReply("no JSON"))
    assert [asking.wait(unreadable, attempt) for attempt in (1, 2, 3)] == [0.0] * 3
    late = asking.wait(asking.failure(TimeoutError()), 1)
    assert late is not None
    assert late >= 2.0


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


def texts(replies: Sequence[str]) -> FunctionModel:
    said = iter(replies)
    return FunctionModel(lambda messages, info: ModelResponse(parts=[TextPart(content=next(said))]))


async def test_a_free_model_is_one_whose_price_is_nothing() -> None:
    assert client(texts([])).is_free
    assert not client(texts([]), price=None).is_free
    assert not client(texts([]), price=Price(input=1, output=0)).is_free


def test_a_price_of_ones_own_may_have_its_own_for_the_cache() -> None:
    price = Price.parse("10,20,1,12.5")
    assert price == Price(input=10, output=20, cached=1, cache_write=12.5)
    spent = price.cost(1_000_000, 0, cached_tokens=500_000, cache_write_tokens=400_000)
    assert spent == pytest.approx(0.1 * 10 + 0.5 * 1 + 0.4 * 12.5)
    assert Price(input=10, output=20).cost(1_000_000, 0, cached_tokens=500_000) == 10
    for wrong in ("1", "1,2,3,4,5", "1,x", "1,2,-3"):
        with pytest.raises(JudgeError, match="a price is"):
            Price.parse(wrong)


async def test_a_model_in_this_process_costs_nothing_and_is_asked_under_a_budget_of_0() -> None:
    local = LangChainModel(FakeListChatModel(responses=["Yes."]), is_local=True)
    asking = client(local, price=None, limits=RateLimits(budget_usd=0.0))
    assert asking.is_free
    assert await asking.ask(ASKED, str) == "Yes."
    assert (asking.usage.usd, asking.usage.estimated) == (0.0, 1)
    with pytest.raises(JudgeError, match="is not known"):
        client(LangChainModel(FakeListChatModel(responses=["Yes."])), price=None, limits=RateLimits(budget_usd=0.0))


def completed(**message: Any) -> Fault:
    """A completion as a plain server writes it: without id, model, time and usage."""
    return Fault(body=json.dumps({"choices": [{"message": message}]}))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (completed(role="assistant", content="Yes."), "Yes."),
        (completed(content="Yes."), "Yes."),
        (completed(role="assistant", content=None, reasoning_content='{"right": true}'), '{"right": true}'),
        (completed(role="assistant", content=None, reasoning_content="Perhaps {}"), ""),
        (completed(role="assistant", content="No.", reasoning_content='{"right": true}'), "No."),
        (
            completed(
                role="assistant",
                content=None,
                tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"right": 1}'}}],
            ),
            '{"right": 1}',
        ),
    ],
)
async def test_the_text_of_a_reply_is_found_where_servers_put_it(answer: Fault, text: str) -> None:
    with ChatServer(lambda body: answer) as server:
        assert await client(openai_model(server.base_url, "stub")).ask(ASKED, str) == text


@pytest.mark.parametrize(("code", "refused"), [(402, True), (429, False), ("upstream", False)])
async def test_an_error_within_a_success_is_that_error(code: Any, refused: bool) -> None:
    body = json.dumps({"id": None, "choices": None, "error": {"message": "Provider returned error", "code": code}})
    with ChatServer(lambda _: Fault(body=body)) as server:
        asking = client(openai_model(server.base_url, "stub"), retries=1)
        with pytest.raises(JudgeRefused if refused else RequestFailed, match="Provider returned error"):
            await asking.ask(ASKED, str)
        assert server.calls == (1 if refused else 2)
