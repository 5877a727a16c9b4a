"""ReplyModes: a server that cannot hold replies to a schema is asked for JSON, then for text, and what worked is
remembered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from cm2_agent.errors import JudgeRefused
from cm2_agent.llm.client import LLMClient
from cm2_agent.llm.failures import RequestFailed
from cm2_agent.llm.providers import language_model, openai_model
from cm2_agent.llm.reply_modes import Schema
from tests.chat_server import ChatServer, Fault, Reply
from tests.judge_server import FREE

ASKED: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart(content="Right?")], instructions="Answer in JSON.")]
FORM: dict[str, Any] = {"type": "object", "properties": {"right": {"type": "boolean"}}}
SCHEMA = Schema(name="form", body=FORM, strict=False)
RIGHT = '{"right": true}'
MESSAGES = (
    "response_format json_schema is not supported",
    "This response_format type is unavailable now",
    "structured output is not enabled for this model",
    "No endpoints found that can handle the requested parameters.",
    "Failed to parse grammar",
    "Bad Request",
)
_OPEN: list[LLMClient] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    yield
    while _OPEN:
        await _OPEN.pop().aclose()


def client(model: Any, **options: Any) -> LLMClient:
    _OPEN.append(LLMClient(model, of="judge", **{"price": FREE, "retries": 0, "backoff": 0.0, **options}))
    return _OPEN[-1]


def kind(body: dict[str, Any]) -> str | None:
    held: Any = body.get("response_format")
    return None if held is None else str(held["type"])


def error(message: str, status: int = 400) -> Fault:
    return Fault(status=status, body=json.dumps({"error": {"message": message, "type": "invalid_request_error"}}))


class Knowing:
    """A server that knows some kinds of `response_format`, as its maker documents them, and rejects the others."""

    def __init__(self, *kinds: str | None, message: str, status: int = 400) -> None:
        self.kinds, self.error = kinds, error(message, status)

    def __call__(self, body: dict[str, Any]) -> Reply:
        return RIGHT if kind(body) in self.kinds else self.error


def shown(body: dict[str, Any]) -> str:
    return "\n".join(str(message["content"]) for message in body["messages"] if message["role"] == "system")


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("everywhere", [False, True], ids=["a schema of the request", "a schema of the model"])
async def test_a_server_without_schemas_is_asked_for_json(message: str, everywhere: bool) -> None:
    with ChatServer(Knowing("json_object", None, message=message)) as server:
        schema = ("form", FORM) if everywhere else None
        asking = client(openai_model(server.base_url, "stub", schema=schema, settings={"extra_body": {"seed": 7}}))
        for _ in range(3):
            assert await asking.ask(ASKED, str, schema=SCHEMA) == RIGHT
        assert [kind(body) for body in server.bodies] == ["json_schema", *["json_object"] * 3]
        assert [body.get("seed") for body in server.bodies] == [7] * 4
        assert ['"right"' in shown(body) for body in server.bodies] == [False, True, True, True]
        assert all("Answer in JSON." in shown(body) for body in server.bodies)
        assert asking.usage.calls == 4
        assert asking.modes.mode == "json_mode"


@pytest.mark.parametrize("status", [400, 422, 501])
@pytest.mark.parametrize("message", ["response_format is not allowed", "Bad Request"])
async def test_a_server_without_json_is_asked_for_text(message: str, status: int) -> None:
    with ChatServer(Knowing(None, message=message, status=status)) as server:
        asking = client(openai_model(server.base_url, "stub", schema=("form", FORM)))
        for _ in range(2):
            assert await asking.ask(ASKED, str, schema=SCHEMA) == RIGHT
        assert [kind(body) for body in server.bodies] == ["json_schema", "json_object", None, None]
        assert '"right"' in shown(server.bodies[-1])


async def test_a_rejection_for_another_reason_leaves_the_mode_as_it_is() -> None:
    answers: Iterator[Reply] = iter([RIGHT, error("the model cannot read this"), RIGHT])
    with ChatServer(lambda body: next(answers)) as server:
        asking = client(openai_model(server.base_url, "stub", schema=("form", FORM)))
        assert await asking.ask(ASKED, str, schema=SCHEMA) == RIGHT
        with pytest.raises(RequestFailed, match="cannot read this"):
            await asking.ask(ASKED, str, schema=SCHEMA)
        assert await asking.ask(ASKED, str, schema=SCHEMA) == RIGHT
        assert [kind(body) for body in server.bodies] == ["json_schema"] * 3


async def test_where_no_mode_works_the_first_reason_counts_and_nothing_is_remembered() -> None:
    with ChatServer(lambda body: error(f"wrong {len(kind(body) or '')}")) as server:
        asking = client(openai_model(server.base_url, "stub", schema=("form", FORM)))
        with pytest.raises(JudgeRefused, match="wrong 11"):
            await asking.ask(ASKED, str, schema=SCHEMA)
        assert server.calls == 6, "the request, and a plain one, in each mode"
        assert asking.modes.mode == "json_schema"


async def test_too_many_requests_are_no_matter_of_schemas() -> None:
    busy = Fault(status=429, body=json.dumps({"error": {"message": "slow down: response_format"}}))
    with ChatServer(lambda body: RIGHT, faults=[busy]) as server:
        asking = client(openai_model(server.base_url, "stub", schema=("form", FORM)), retries=1)
        assert await asking.ask(ASKED, str, schema=SCHEMA) == RIGHT
        assert [kind(body) for body in server.bodies] == ["json_schema"] * 2


def chat(server: ChatServer, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="stub", base_url=server.base_url, api_key="none", max_retries=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knows", "asked"),
    [
        (("json_schema", "json_object", None), ["json_schema"] * 2),
        (("json_object", None), ["json_schema", "json_object", "json_object"]),
        ((None,), ["json_schema", "json_object", None, None]),
    ],
    ids=["json_schema", "json_mode", "text"],
)
async def test_a_langchain_model_goes_down_the_same_modes(knows: tuple[Any, ...], asked: list[Any]) -> None:
    with ChatServer(Knowing(*knows, message="response_format is not supported")) as server:
        asking = client(language_model(chat(server)), settings={"temperature": 0.25})
        for _ in range(2):
            assert await asking.ask(ASKED, str, schema=SCHEMA) == RIGHT
        assert [kind(body) for body in server.bodies] == asked
        assert [body["temperature"] for body in server.bodies] == [0.25] * len(asked)
        assert asking.usage.input_tokens > 0


@pytest.mark.parametrize("status", [401, 402, 403, 404])
async def test_a_langchain_model_that_is_refused_ends_the_asking(status: int) -> None:
    with ChatServer(lambda body: error("no", status)) as server:
        with pytest.raises(JudgeRefused, match="is refused by its provider"):
            await client(language_model(chat(server)), retries=3).ask(ASKED, str, schema=SCHEMA)
        assert server.calls == 1 + (status == 403)


@pytest.mark.parametrize(
    ("status", "message", "cause", "calls"),
    [
        (429, "slow down", "infrastructure", 2),
        (503, "overloaded", "infrastructure", 2),
        (400, "maximum context length is 8192 tokens", "content", 1),
        (400, "the content policy forbids it", "content", 1),
    ],
)
async def test_a_langchain_models_failures_have_their_causes(status: int, message: str, cause: str, calls: int) -> None:
    with ChatServer(lambda body: error(message, status)) as server:
        with pytest.raises(RequestFailed) as raised:
            await client(language_model(chat(server)), retries=1).ask(ASKED, str)
        assert (raised.value.failure.cause, server.calls) == (cause, calls)


class Calling(BaseChatModel):
    """A chat model whose structured output is a call of a function, as older ones have it."""

    @property
    def _llm_type(self) -> str:
        return "calling"

    def with_structured_output(self, schema: Any, **options: Any) -> Any:
        if options.get("method") == "json_schema":
            raise ValueError("json_schema is not supported")
        from langchain_core.output_parsers import JsonOutputParser

        return self.bind(called=True) | JsonOutputParser()

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        assert kw == {"called": True}
        called = {"name": "form", "args": json.loads(RIGHT), "id": "1"}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[called]))])


async def test_a_reply_that_is_a_function_call_is_read() -> None:
    asking = client(language_model(Calling()))
    assert json.loads(await asking.ask(ASKED, str, schema=SCHEMA)) == {"right": True}
    assert asking.modes.mode == "json_mode"


async def test_a_chat_model_without_structured_output_is_asked_for_text() -> None:
    asking = client(language_model(FakeListChatModel(responses=[RIGHT])))
    assert asking.modes.mode == "text"
    assert await asking.ask(ASKED, str, schema=SCHEMA) == RIGHT
