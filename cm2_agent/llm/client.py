"""LLMClient: asks a model within its limits until the reply can be read, and says what each failure means."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import ModelTimeoutError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from cm2_agent.errors import BudgetExhausted, JudgeRefused
from cm2_agent.llm.failures import (
    AnswerRefused,
    MalformedReply,
    RequestFailed,
    RequestFailure,
    failure_of,
    may_lack_schemas,
)
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price, cost
from cm2_agent.llm.providers import PerLoopModel
from cm2_agent.llm.reply_modes import ReplyMode, ReplyModes, Schema
from cm2_agent.llm.usage import Usage

CHARACTERS_A_TOKEN = 4
"""An estimate for limits, and for what a call took where the reply says nothing of it."""
_DENIED = 3
"""Requests in a row that a provider denies for the key or the model, after it has answered, at which it denies all."""
_PLAIN: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart(content="Reply with the JSON object {}.")])]
_T = TypeVar("_T")


class LLMClient:
    """One language model, asked within its limits. `usage` counts this client's requests alone.

    A server that cannot hold its replies to a schema is asked for any JSON object from then on, and one that cannot do
    that either for text; the schema stands in the prompt then. Where a reply says nothing of its tokens, they are
    estimated: four characters a token; so are those of a request that got no answer in time. A provider that would
    refuse any request (401, 402, 404, or the plainest one where it has never answered) ends the asking: JudgeRefused.

    Raises JudgeError where limits in dollars cannot be held, since no price is known.

    Args:
        model: The model, as `language_model` makes it from a name.
        of: Who asks, as errors name it.
        settings: pydantic-ai model settings.
        timeout: Seconds a request may take.
        retries: Requests beyond the first.
        backoff: Seconds before the first retry; doubled at each and jittered. After a reply that was none, no time
            is lost.
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
        if price is None and getattr(model, "is_local", False):
            price = Price(input=0.0, output=0.0)  # it runs in this process
        self.model, self.of, self.price = model, of, price
        self.limits = limits or RateLimits(of=of)
        self.settings = cast(ModelSettings, dict(settings)) if settings else None
        self.timeout, self.retries, self.backoff, self.longest_wait = timeout, retries, backoff, longest_wait
        self.usage = Usage()
        self.refused: str | None = None
        """Why the provider last refused a request as it would any: its key, the model's name or the credit."""
        self.modes = ReplyModes(model)
        self._answered, self._denied = False, 0
        self._unpriced: set[tuple[str, str | None]] = set()
        self.name = f"{model.system}:{model.model_name}"
        if (
            price is None
            and self.limits.budget_usd is not None
            and cost(model.model_name, 0, 0, provider=model.system) is None
        ):
            self.limits.refuse_unpriced(self.name)

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

        Raises RequestFailed after the retries, BudgetExhausted before a request that the budget does not allow,
        JudgeRefused where the provider would refuse any request.
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
        not be used. What it raises is a failure too, but for RequestFailed and BudgetExhausted, which end it. Raises
        JudgeRefused where the provider would refuse any request."""
        failure: RequestFailure | None = None
        for number in range(self.retries + 1):
            if failure is not None:
                wait = self.wait(failure, number)
                if wait is None:
                    break
                await asyncio.sleep(wait)
            refused = False
            try:
                failure = await attempt(failure is not None and failure.reply)
            except (RequestFailed, BudgetExhausted):
                raise
            except Exception as error:  # whatever a provider's client raises is a failure of the model asked
                failure = self.failure(error)
                refused = failure.refused or (failure.rejected and await self._rejects_all())
            if failure is None:
                return None
            if refused:  # raised here, without the provider's own error, in which the key may be echoed
                self.refused = failure.explanation
                raise JudgeRefused(
                    f"the {self.of} {self.name} is refused by its provider: {failure.explanation}. What it was not"
                    " asked by then stays open: set its key, the model's name or its credit right, and run again"
                )
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
        mode, first = self.modes.mode, None
        while True:  # down the modes: each time round there is one less
            try:
                response = await self._send(messages, tokens, answer_tokens, schema, mode, re_ask)
            except Exception as error:
                lower = self.modes.below(mode, error)
                if lower is None:
                    if first is not None and may_lack_schemas(error):
                        raise first from error
                    raise
                mode, first = lower, first or error
            else:
                self.modes.worked(mode)
                self._answered, self._denied = True, 0
                return response

    async def _send(
        self,
        messages: Sequence[ModelMessage],
        tokens: int,
        answer_tokens: int,
        schema: Schema | None,
        mode: ReplyMode,
        re_ask: bool,
    ) -> ModelResponse:
        shown, settings, parameters = self.modes.prepared(mode, messages, schema, self.settings)
        async with self.limits.slot(tokens + answer_tokens, self._estimated_usd(tokens, answer_tokens)):
            spent = Usage(calls=1, re_asks=int(re_ask))
            try:
                async with asyncio.timeout(self.timeout):
                    response = await model_request(
                        self.model, shown, model_settings=settings, model_request_parameters=parameters
                    )
                spent = self._spent(spent, response, tokens)
            except (TimeoutError, ModelTimeoutError, asyncio.CancelledError):  # the server may have done the work
                usd = self._cost(self.model.model_name, self.model.system, tokens, answer_tokens)
                spent = replace(spent, input_tokens=tokens, output_tokens=answer_tokens, usd=usd, estimated=1)
                raise
            finally:
                counts = spent.__dict__
                self.usage.add(**counts)
                self.limits.spend(**counts)
        return response

    def _spent(self, call: Usage, response: ModelResponse, tokens: int) -> Usage:
        """What an answered call took: as the reply says, else estimated."""
        used = response.usage
        name, provider = response.model_name or self.model.model_name, response.provider_name or self.model.system
        thought = used.details.get("reasoning_tokens", 0)
        read, made = used.input_tokens, used.output_tokens
        made += thought if thought > made else 0  # some count it apart
        written = sum(map(_written, response.parts))
        guessed = not read or not (made or not written)
        read = read or tokens
        made = made or -(-written // CHARACTERS_A_TOKEN)
        usd = self._cost(name, provider, read, made, used.cache_read_tokens, used.cache_write_tokens)
        return Usage(
            calls=call.calls,
            re_asks=call.re_asks,
            input_tokens=read,
            output_tokens=made,
            usd=usd,
            estimated=int(guessed),
        )

    def wait(self, failure: RequestFailure, attempt: int) -> float | None:
        """Seconds to wait before this attempt (1 is the first retry), None where there should be none."""
        if not failure.retry or (failure.wait is not None and failure.wait > self.longest_wait):
            return None
        if failure.reply:  # the provider answers: it needs no rest
            return 0.0
        backoff = min(self.longest_wait, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        return float(max(backoff, failure.wait or 0.0))

    def failure(self, error: Exception) -> RequestFailure:
        """What an error of a request, or of reading its reply, means."""
        failure = failure_of(error, of=self.of, timeout=self.timeout)
        if failure.access and self._answered:
            self._denied += 1
            return replace(failure, refused=self._denied >= _DENIED)
        return failure

    async def _rejects_all(self) -> bool:
        """Whether a model that has never answered rejects even the plainest request, so that it was not for what was
        shown."""
        if self._answered:
            return False
        try:
            await self.request(_PLAIN, tokens=estimated(_PLAIN), answer_tokens=4)
        except BudgetExhausted:
            return False
        except Exception as error:
            failure = self.failure(error)
            return failure.rejected or failure.refused
        return False

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


def _written(part: ModelResponsePart) -> int:
    """Characters of a part that the model wrote."""
    if isinstance(part, ToolCallPart):
        return len(part.args_as_json_str())
    return len(part.content) if isinstance(part, TextPart | ThinkingPart) else 0


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
        raise AnswerRefused(str(details.get("refusal") or "the provider filtered its answer"))
    if response.finish_reason == "length":
        raise MalformedReply("the reply was cut off at its token limit")
    text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    if text.strip():
        return text
    calls = [part for part in response.parts if isinstance(part, ToolCallPart)]
    if len(calls) == 1:  # some models answer a schema by calling a function of it
        given = calls[0].args
        return given if isinstance(given, str) else calls[0].args_as_json_str()
    thoughts = [part.content.strip() for part in response.parts if isinstance(part, ThinkingPart)]
    if not calls and len(thoughts) == 1 and thoughts[0].startswith("{") and thoughts[0].endswith("}"):
        return thoughts[0]  # a server that looks for thinking takes the whole reply for it
    return text


__all__ = ["LLMClient", "estimated", "reply_text"]
