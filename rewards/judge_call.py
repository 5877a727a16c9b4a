"""Asking a model until it answers every item, or cannot: requests, limits, retries and what each failure means; apart from the judge, which
knows items and evidence but no network.

Whatever goes wrong is a Failure with its cause (method.md §4): `infrastructure` for time-outs, rate limits, server errors and malformed or
incomplete replies, `content` for refusals and transcripts too long for the model, which the judged text itself can bring about. None is a
verdict.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelContextWindowExceededError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
    UserError,
)
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings

from cm2_agent.errors import BudgetExhausted
from cm2_agent.llm.limits import Limits
from cm2_agent.llm.prices import Price, cost
from cm2_agent.llm.usage import Usage
from cm2_agent.rewards.judge_prompt import INSTRUCTIONS, Window, tail
from cm2_agent.rewards.judge_reply import SCHEMA, Answer, Malformed, read
from cm2_agent.score import NullCause

CHARACTERS_A_TOKEN = 4
TOKENS_AN_ANSWER = 150
"""Estimates for limits and splitting: what is spent is counted from the replies."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an item has no answer. `retry`: asking again may help, after `wait` seconds where the provider said so; `reply`: there was a
    reply, but not what was asked for."""

    cause: NullCause
    explanation: str
    retry: bool = True
    wait: float | None = None
    reply: bool = False


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer, and the model that returned it."""

    answer: Answer
    served: str


class _Refused(Exception):
    """The model would not answer."""


class Caller:
    """One model, asked within its limits. `timeout` is seconds a request; `retries` requests beyond the first, after a back-off that
    begins at `backoff` seconds, doubles, is jittered and never longer than `longest_wait`: a provider that asks to wait longer is given
    up."""

    def __init__(
        self,
        model: Model,
        *,
        settings: ModelSettings | None,
        timeout: float,
        retries: int,
        backoff: float,
        longest_wait: float,
        limits: Limits,
        price: Price | None,
    ) -> None:
        self.model, self.settings, self.limits, self.price = model, settings, limits, price
        self.timeout, self.retries, self.backoff, self.longest_wait = timeout, retries, backoff, longest_wait
        self.usage = Usage()
        self._unpriced: set[tuple[str, str | None]] = set()
        native = bool(model.profile.get("supports_json_schema_output")) and not getattr(model, "sends_schema", False)
        self._parameters = ModelRequestParameters(
            output_mode="native" if native else "text",
            output_object=OutputObjectDefinition(json_schema=SCHEMA, name="verdicts", strict=True) if native else None,
        )

    async def ask(
        self,
        window: Window,
        items: Mapping[str, str],
        found: dict[str, Answered | Failure],
        *,
        note: str = "",
        re_ask: bool = False,
    ) -> None:
        """Put an answer or a failure for each item, given as id → line, into `found` as it comes. What a reply leaves out is asked again,
        alone. Raises BudgetExhausted where the budget does not allow a call: what was answered by then is in `found`."""
        waiting = dict(items)
        failure: Failure | None = None
        for attempt in range(self.retries + 1):
            if failure is not None:
                wait = self._wait(failure, attempt)
                if wait is None:
                    break
                await asyncio.sleep(wait)
            again = re_ask or (failure is not None and failure.reply)
            try:
                response = await self._request(window, waiting, note, again)
                answers = read(_text(response), waiting)
            except BudgetExhausted:
                raise
            except Exception as error:  # whatever a provider's client raises is the judge's failure, and no verdict
                failure = _failure(error, self.timeout)
                continue
            served = response.model_name or self.model.model_name
            for name, answer in answers.items():
                found[name] = Answered(answer=answer, served=served)
                del waiting[name]
            if not waiting:
                return
            failure = Failure(cause="infrastructure", explanation="the reply left the item out", reply=True)
        assert failure is not None
        found.update(dict.fromkeys(waiting, failure))

    def estimate(self, window: Window, items: Mapping[str, str]) -> int:
        """Tokens of a call, in and out, roughly."""
        characters = len(INSTRUCTIONS) + len(window.text) + sum(map(len, items.values()))
        return characters // CHARACTERS_A_TOKEN + TOKENS_AN_ANSWER * len(items)

    async def _request(self, window: Window, items: Mapping[str, str], note: str, re_ask: bool) -> ModelResponse:
        end = tail(window, list(items.items()), note)
        content: str | list[Any] = f"{window.text}\n{end}"
        if window.images:
            shown = [piece for number, image in enumerate(window.images, 1) for piece in (f"image {number}:", image)]
            content = [window.text, *shown, end]
        message = ModelRequest(parts=[UserPromptPart(content=content)], instructions=INSTRUCTIONS)
        tokens = self.estimate(window, items)
        async with self.limits.slot(tokens, self._estimated_usd(tokens, len(items))):
            spent = Usage(calls=1, re_asks=int(re_ask))
            try:
                async with asyncio.timeout(self.timeout):
                    response = await model_request(
                        self.model, [message], model_settings=self.settings, model_request_parameters=self._parameters
                    )
                used = response.usage
                spent = replace(
                    spent, input_tokens=used.input_tokens, output_tokens=used.output_tokens, usd=self._usd(response)
                )
            finally:
                self.usage.add(**spent.__dict__)
                self.limits.spend(
                    calls=1, input_tokens=spent.input_tokens, output_tokens=spent.output_tokens, usd=spent.usd, re_asks=spent.re_asks
                )
        return response

    def _usd(self, response: ModelResponse) -> float | None:
        name, provider, used = response.model_name or self.model.model_name, response.provider_name or self.model.system, response.usage
        if (name, provider) in self._unpriced:
            return None
        usd = cost(
            name, used.input_tokens, used.output_tokens, provider=provider, cached_tokens=used.cache_read_tokens, price=self.price
        )
        if usd is None:
            self._unpriced.add((name, provider))
        return usd

    def _estimated_usd(self, tokens: int, items: int) -> float | None:
        if self.limits.budget_usd is None:
            return 0.0
        out = TOKENS_AN_ANSWER * items
        return cost(self.model.model_name, tokens - out, out, provider=self.model.system, price=self.price)

    def _wait(self, failure: Failure, attempt: int) -> float | None:
        """Seconds to wait before this attempt, None where there should be none."""
        if not failure.retry or (failure.wait is not None and failure.wait > self.longest_wait):
            return None
        backoff = min(self.longest_wait, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        return float(max(backoff, failure.wait or 0.0))


def _text(response: ModelResponse) -> str:
    """The reply's text. Raises where the model refused, or was cut off: half a reply is none."""
    if response.finish_reason == "content_filter":
        details = response.provider_details or {}
        raise _Refused(str(details.get("refusal") or "the provider filtered its answer"))
    if response.finish_reason == "length":
        raise Malformed("the reply was cut off at its token limit")
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


def _failure(error: Exception, timeout: float) -> Failure:
    said = f"{type(error).__name__}: {str(error)[:200]}"
    if isinstance(error, Malformed):
        return Failure(cause="infrastructure", explanation=str(error)[:300], reply=True)
    if isinstance(error, _Refused | ContentFilterError):
        return Failure(cause="content", explanation=f"the judge refused: {str(error)[:200]}", reply=True)
    if isinstance(error, TimeoutError):
        return Failure(cause="infrastructure", explanation=f"no answer within {timeout:g} s")
    if isinstance(error, ModelContextWindowExceededError):
        return Failure(cause="content", explanation=f"the transcript is too long for the judge: {said}", retry=False)
    if isinstance(error, ModelRequestRejectedError | ModelQuotaExceededError | UserError):
        return Failure(cause="infrastructure", explanation=said, retry=False)
    if isinstance(error, ModelAPIError):
        return Failure(cause="infrastructure", explanation=said, wait=error.retry_after)
    return Failure(cause="infrastructure", explanation=said)


__all__ = ["Answered", "Caller", "Failure"]
