"""A conversation with a labelling model: questions out, text in, within limits and with retries; apart from the labeler, which knows items
but no network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import ModelAPIError, ModelQuotaExceededError, ModelRequestRejectedError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from cm2_agent.errors import BudgetExhausted, ModelError
from cm2_agent.llm.limits import Limits
from cm2_agent.llm.prices import cost


class Conversation:
    """One dialogue's questions to the model; each sees those before it and their answers.

    `timeout` is seconds a request; `retries` requests beyond the first where the provider failed, after a back-off that begins at `backoff`
    seconds and doubles. `calls` counts every request.
    """

    def __init__(
        self,
        model: Model,
        *,
        instructions: str,
        limits: Limits,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 300.0,
        retries: int = 3,
        backoff: float = 1.0,
    ) -> None:
        self.model, self.instructions, self.limits = model, instructions, limits
        self.settings = cast(ModelSettings, dict(settings)) if settings else None
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.history: list[ModelMessage] = []
        self.calls = 0

    async def ask(self, question: str) -> str:
        """The answer's text. Raises BudgetExhausted before a request that the limits do not allow, ModelError where the model fails."""
        self.history.append(ModelRequest(parts=[UserPromptPart(content=question)], instructions=self.instructions))
        for attempt in range(self.retries + 1):
            try:
                reply = await self._request(len(question) // 4)
            except BudgetExhausted:
                raise
            except Exception as error:  # whatever the provider's client raises, this dialogue has no label; the others may
                if attempt == self.retries or not _passing(error):
                    raise ModelError(f"{self.model.model_name} failed: {type(error).__name__}: {str(error)[:300]}") from error
                await asyncio.sleep(self.backoff * 2**attempt)
            else:
                self.history.append(reply)
                if reply.finish_reason == "length":
                    raise ModelError(f"{self.model.model_name}: the reply was cut off at its token limit; raise max_tokens in the settings")
                return "".join(part.content for part in reply.parts if isinstance(part, TextPart))
        raise AssertionError("the last attempt returns or raises")

    async def _request(self, tokens: int) -> ModelResponse:
        async with self.limits.slot(tokens):
            self.calls += 1
            spent: dict[str, Any] = {}
            try:
                async with asyncio.timeout(self.timeout):
                    reply = await model_request(self.model, self.history, model_settings=self.settings)
                used, name = reply.usage, reply.model_name or self.model.model_name
                usd = cost(name, used.input_tokens, used.output_tokens, provider=reply.provider_name or self.model.system)
                spent = {"input_tokens": used.input_tokens, "output_tokens": used.output_tokens, "usd": usd}
                return reply
            finally:
                self.limits.spend(**spent)


def _passing(error: Exception) -> bool:
    """Whether asking again may help: time-outs and what a provider says of itself, but not what it says of the request."""
    if isinstance(error, ModelRequestRejectedError | ModelQuotaExceededError):
        return False
    return isinstance(error, TimeoutError | ModelAPIError)


__all__ = ["Conversation"]
