"""A dialogue's token budget: callbacks that count its tokens while it runs and stop it at the limit."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult


class TokensSpent(Exception):
    """The dialogue's limit of tokens allows no further model call."""


class Meter(BaseCallbackHandler):
    """Adds up what model calls say of their usage, prompt and completion. A call without usage counts its token ids,
    one without either nothing. No call begins once `limit` is reached: it goes before the handlers that record calls,
    `stop` behind them."""

    raise_error = True
    run_inline = True

    def __init__(self, limit: int, spent: int = 0) -> None:
        self.limit, self.spent = limit, spent
        self.stopped = False
        self.stop = Stop(self)

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        self.check()

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        self.check()

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        self.spent += sum(_tokens(message) for message in _messages(response))

    def check(self) -> None:
        """Raises TokensSpent where nothing is left: LangChain tells callbacks of a call before making it, and makes
        none then."""
        if self.spent >= self.limit:
            self.stopped = True
            raise TokensSpent(f"{self.spent} tokens are spent of the {self.limit} that the dialogue may take")


class Stop(BaseCallbackHandler):
    """Ends a turn behind the call that reached the limit, where that asks for tools: a further call would have to
    follow."""

    raise_error = True
    run_inline = True

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        if any(getattr(message, "tool_calls", None) for message in _messages(response)):
            self._meter.check()


def _messages(response: LLMResult) -> list[Any]:
    return [getattr(generations[0], "message", None) for generations in response.generations if generations]


def _tokens(message: Any) -> int:
    usage = getattr(message, "usage_metadata", None)
    if usage:
        return int(usage["total_tokens"])
    metadata = getattr(message, "response_metadata", None) or {}
    return len(metadata.get("prompt_ids") or ()) + len(metadata.get("completion_ids") or ())


__all__ = ["Meter", "TokensSpent"]
