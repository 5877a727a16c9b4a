"""WriterSession: a conversation with the model that writes a checklist; each question sees those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model

from cm2_agent.errors import ModelError
from cm2_agent.llm.client import LLMClient
from cm2_agent.llm.failures import RequestFailed
from cm2_agent.llm.limits import RateLimits


class WriterSession:
    """One dialogue's questions to the model; each sees those before it and their answers. `calls` counts every request.

    Args:
        model: The model that writes.
        instructions: The system prompt.
        limits: Bound the calls.
        settings: pydantic-ai model settings.
        timeout: Seconds a request may take.
        retries: Requests beyond the first where the provider failed.
        backoff: Seconds before the first retry, doubled at each.
    """

    def __init__(
        self,
        model: Model,
        *,
        instructions: str,
        limits: RateLimits,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 300.0,
        retries: int = 3,
        backoff: float = 1.0,
    ) -> None:
        self.instructions = instructions
        self.history: list[ModelMessage] = []
        self._client = LLMClient(
            model,
            of="labelling model",
            settings=settings,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            limits=limits,
        )

    @property
    def calls(self) -> int:
        return self._client.usage.calls

    async def ask(self, question: str) -> str:
        """The answer's text. Raises BudgetExhausted before a request that the limits do not allow, ModelError where the
        model fails."""
        self.history.append(ModelRequest(parts=[UserPromptPart(content=question)], instructions=self.instructions))
        try:
            text = await self._client.ask(self.history, str)
        except RequestFailed as error:
            raise ModelError(f"{self._client.model.model_name} failed: {error}") from error
        self.history.append(ModelResponse(parts=[TextPart(content=text)]))
        return text


__all__ = ["WriterSession"]
