"""LLMClient: asks a model within its limits until the reply can be read, and says what each failure means."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelContextWindowExceededError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
    ModelTimeoutError,
    UserError,
)
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ThinkingPart, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings

from cm2_agent.errors import BudgetExhausted, ModelError
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price, cost
from cm2_agent.llm.providers import PerLoopModel
from cm2_agent.llm.usage import Usage
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import NullCause
from cm2_agent.types.secrets import error_text

CHARACTERS_A_TOKEN = 4
"""An estimate for limits, and for what a call took where the reply says nothing of it."""
_NO_SCHEMA = re.compile(r"response_?format|json[_ ]?schema|structured[_ ]output|guided|grammar", re.IGNORECASE)
"""What a server says that cannot hold a reply to a schema."""
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class RequestFailure:
    """Why there is no answer. `retry`: asking again may help, after `wait` seconds where the provider says so; `reply`:
    there was a reply, but not what was asked for. `cause`: `content` where what was shown can bring it about
    (docs/method.md §4)."""

    cause: NullCause
    explanation: str
    retry: bool = True
    wait: float | None = None
    reply: bool = False


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a reply is held to where the provider can. `strict`: the schema keeps to what OpenAI's strict mode
    allows."""

    name: str
    body: Mapping[str, JSON]
    strict: bool = True


class MalformedReply(ModelError):
    """A reply that cannot be read as what was asked for."""


class RequestFailed(ModelError):
    """No answer: `failure` says why. Raised by a reader of replies, it ends the asking."""

    def __init__(self, failure: RequestFailure) -> None:
        super().__init__(failure.explanation)
        self.failure = failure


class _Refused(Exception):
    """The model would not answer."""


class LLMClient:
    """One language model, asked within its limits. `usage` counts this client's requests alone.

    A server that cannot hold its replies to a schema is asked without it from then on. Where a reply says nothing of
    its tokens, they are estimated: four characters a token; so are those of a request that got no answer in time.

    Raises JudgeError where limits in dollars cannot be held, since no price is known.

    Args:
        model: The model, as `language_model` makes it from a name.
        of: Who asks, as errors name it.
        settings: pydantic-ai model settings.
        timeout: Seconds a request may take.
        retries: Requests beyond the first.
        backoff: Seconds before the first retry; doubled at each and jittered.
        longest_wait: Seconds; a provider that asks to wait longer is given up.
        limits: Concurrency, requests and tokens a minute, and a budget; may be shared.
        price: US dollars a million tokens, where the published price is not yours.

    >>> import asyncio
    >>> from cm2_agent.llm import language_model
    >>> client = LLMClient(language_model("test"), of="example")
    >>> question = ModelRequest(parts=[UserPromptPart(content="Is it right?")])
    >>> asyncio.run(client.ask([question], str))
    'success (no tool calls)'
    """

    def __init__(
        self,
        model: Model,
        *,
        of: str,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        longest_wait: float = 60.0,
        limits: RateLimits | None = None,
        price: Price | None = None,
    ) -> None:
        self.model, self.of, self.price = model, of, price
        self.limits = limits or RateLimits(of=of)
        self.settings = cast(ModelSettings, dict(settings)) if settings else None
        self.timeout, self.retries, self.backoff, self.longest_wait = timeout, retries, backoff, longest_wait
        self.usage = Usage()
        self.refused: str | None = None
        """Why the provider last refused a request as it would any: its key, the model's name or the credit."""
        self._schema_refused = False
        self._unpriced: set[tuple[str, str | None]] = set()
        name = f"{model.system}:{model.model_name}"
        if (
            price is None
            and self.limits.budget_usd is not None
            and cost(model.model_name, 0, 0, provider=model.system) is None
        ):
            self.limits.refuse_unpriced(name)
        self._native = bool(model.profile.get("supports_json_schema_output")) and not getattr(
            model, "sends_schema", False
        )

    async def ask(
        self,
        messages: Sequence[ModelMessage],
        read: Callable[[str], _T],
        *,
        schema: Schema | None = None,
        answer_tokens: int = 150,
        re_ask: bool = False,
    ) -> _T:
        """What `read` makes of the reply's text. A `read` that raises MalformedReply has the model asked again,
        one that raises RequestFailed ends it. `answer_tokens` is the reply's expected length, for limits.

        Raises RequestFailed after the retries, BudgetExhausted before a request that the budget does not allow.
        """
        replies: list[_T] = []

        async def attempt(again: bool) -> None:
            response = await self.request(
                messages,
                tokens=estimated(messages),
                answer_tokens=answer_tokens,
                schema=schema,
                re_ask=re_ask or again,
            )
            replies.append(read(reply_text(response)))

        failure = await self.attempts(attempt)
        if failure is not None:
            raise RequestFailed(failure)
        return replies[0]

    async def attempts(self, attempt: Callable[[bool], Awaitable[RequestFailure | None]]) -> RequestFailure | None:
        """Repeat the attempt, with the pauses of this client's retries, until it gives None; else the last failure.

        `attempt(again)` makes a request and reads its reply; `again` says that the one before had a reply that could
        not be used. What it raises is a failure too, but for RequestFailed and BudgetExhausted, which end it."""
        failure: RequestFailure | None = None
        for number in range(self.retries + 1):
            if failure is not None:
                wait = self.wait(failure, number)
                if wait is None:
                    break
                await asyncio.sleep(wait)
            try:
                failure = await attempt(failure is not None and failure.reply)
            except (RequestFailed, BudgetExhausted):
                raise
            except Exception as error:  # whatever a provider's client raises is a failure of the model asked
                failure = self.failure(error)
            if failure is None:
                return None
        return failure

    async def request(
        self,
        messages: Sequence[ModelMessage],
        *,
        tokens: int,
        answer_tokens: int,
        schema: Schema | None = None,
        re_ask: bool = False,
    ) -> ModelResponse:
        """One request within the limits, counted whether it is answered or not. `tokens` and `answer_tokens` are what
        it may take in and give out. Raises BudgetExhausted, TimeoutError, or whatever the provider's client raises."""
        try:
            return await self._send(messages, tokens, answer_tokens, schema, re_ask)
        except ModelRequestRejectedError as error:
            if self._schema_refused or not self._holds(schema) or not _NO_SCHEMA.search(str(error)):
                raise
            self._schema_refused = True
            return await self._send(messages, tokens, answer_tokens, schema, re_ask)

    def _holds(self, schema: Schema | None) -> bool:
        """Whether a request carries a schema, its own or one that the model's settings have for all."""
        return (schema is not None and self._native) or bool(getattr(self.model, "sends_schema", False))

    async def _send(
        self, messages: Sequence[ModelMessage], tokens: int, answer_tokens: int, schema: Schema | None, re_ask: bool
    ) -> ModelResponse:
        parameters, settings = ModelRequestParameters(), self.settings
        if self._schema_refused:
            if isinstance(self.model, PerLoopModel) and self.model.sends_schema:
                settings = cast(ModelSettings, {"extra_body": self.model.other_extra_body, **(self.settings or {})})
        elif schema is not None and self._native:
            held = OutputObjectDefinition(json_schema=dict(schema.body), name=schema.name, strict=schema.strict)
            parameters = ModelRequestParameters(output_mode="native", output_object=held)
        async with self.limits.slot(tokens + answer_tokens, self._estimated_usd(tokens, answer_tokens)):
            spent = Usage(calls=1, re_asks=int(re_ask))
            try:
                async with asyncio.timeout(self.timeout):
                    response = await model_request(
                        self.model, list(messages), model_settings=settings, model_request_parameters=parameters
                    )
                spent = self._spent(spent, response, tokens)
            except (TimeoutError, ModelTimeoutError, asyncio.CancelledError):  # the server may have done the work
                usd = self._cost(self.model.model_name, self.model.system, tokens, answer_tokens)
                spent = replace(spent, input_tokens=tokens, output_tokens=answer_tokens, usd=usd, estimated=1)
                raise
            finally:
                self.usage.add(**spent.__dict__)
                self.limits.spend(**spent.__dict__)
        return response

    def _spent(self, call: Usage, response: ModelResponse, tokens: int) -> Usage:
        """What an answered call took: as the reply says, else estimated."""
        used = response.usage
        name, provider = response.model_name or self.model.model_name, response.provider_name or self.model.system
        if used.input_tokens or used.output_tokens:
            thought = used.details.get("reasoning_tokens", 0)
            made = used.output_tokens + (thought if thought > used.output_tokens else 0)  # some count it apart
            usd = self._cost(name, provider, used.input_tokens, made, used.cache_read_tokens, used.cache_write_tokens)
            return replace(call, input_tokens=used.input_tokens, output_tokens=made, usd=usd)
        written = sum(len(part.content) for part in response.parts if isinstance(part, TextPart | ThinkingPart))
        made = -(-written // CHARACTERS_A_TOKEN)
        usd = self._cost(name, provider, tokens, made)
        return replace(call, input_tokens=tokens, output_tokens=made, usd=usd, estimated=1)

    def wait(self, failure: RequestFailure, attempt: int) -> float | None:
        """Seconds to wait before this attempt (1 is the first retry), None where there should be none."""
        if not failure.retry or (failure.wait is not None and failure.wait > self.longest_wait):
            return None
        backoff = min(self.longest_wait, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        return float(max(backoff, failure.wait or 0.0))

    def failure(self, error: Exception) -> RequestFailure:
        """What an error of a request, or of reading its reply, means."""
        text = f"{type(error).__name__}: {error_text(error)}"
        if isinstance(error, MalformedReply):
            return RequestFailure(cause="infrastructure", explanation=error_text(error, 300), reply=True)
        if isinstance(error, _Refused | ContentFilterError):
            return RequestFailure(
                cause="content", explanation=f"the {self.of} refused: {error_text(error)}", reply=True
            )
        if isinstance(error, TimeoutError):
            return RequestFailure(cause="infrastructure", explanation=f"no answer within {self.timeout:g} s")
        if isinstance(error, ModelContextWindowExceededError):
            return RequestFailure(
                cause="content", explanation=f"what was shown is too long for the {self.of}: {text}", retry=False
            )
        if (
            isinstance(error, ModelAuthenticationError | ModelNotFoundError | ModelQuotaExceededError)
            and getattr(error, "status_code", None) != 403  # a firewall says that of what was shown
        ):
            self.refused = text
        if isinstance(error, ModelRequestRejectedError | ModelQuotaExceededError | UserError):
            return RequestFailure(cause="infrastructure", explanation=text, retry=False)
        if isinstance(error, ModelAPIError):
            return RequestFailure(cause="infrastructure", explanation=text, wait=error.retry_after)
        return RequestFailure(cause="infrastructure", explanation=text)

    @property
    def is_free(self) -> bool:
        """Whether the model's price is known, and is nothing."""
        return cost(self.model.model_name, 1000, 1000, provider=self.model.system, price=self.price) == 0

    async def aclose(self) -> None:
        """Close the connections that this event loop's requests left open."""
        if isinstance(self.model, PerLoopModel):
            await self.model.aclose()

    def _cost(
        self, name: str, provider: str | None, read: int, made: int, cached: int = 0, cache_written: int = 0
    ) -> float | None:
        if (name, provider) in self._unpriced:
            return None
        usd = cost(
            name,
            read,
            made,
            provider=provider,
            cached_tokens=cached,
            cache_write_tokens=cache_written,
            price=self.price,
        )
        if usd is None:
            self._unpriced.add((name, provider))
        return usd

    def _estimated_usd(self, tokens: int, answer_tokens: int) -> float | None:
        if self.limits.budget_usd is None:
            return 0.0
        return cost(self.model.model_name, tokens, answer_tokens, provider=self.model.system, price=self.price)


def estimated(messages: Sequence[ModelMessage]) -> int:
    """Tokens of what is shown, roughly."""
    characters = 0
    for message in messages:
        if isinstance(message, ModelRequest):
            characters += len(message.instructions or "")
            for part in message.parts:
                if isinstance(part, UserPromptPart):
                    pieces = [part.content] if isinstance(part.content, str) else part.content
                    characters += sum(len(piece) for piece in pieces if isinstance(piece, str))
        else:
            characters += sum(len(part.content) for part in message.parts if isinstance(part, TextPart))
    return characters // CHARACTERS_A_TOKEN


def reply_text(response: ModelResponse) -> str:
    """The reply's text. Raises where the model refused, or was cut off: half a reply is none."""
    if response.finish_reason == "content_filter":
        details = response.provider_details or {}
        raise _Refused(str(details.get("refusal") or "the provider filtered its answer"))
    if response.finish_reason == "length":
        raise MalformedReply("the reply was cut off at its token limit")
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


__all__ = [
    "LLMClient",
    "MalformedReply",
    "RequestFailed",
    "RequestFailure",
    "Schema",
    "estimated",
    "reply_text",
]
