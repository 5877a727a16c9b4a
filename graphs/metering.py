"""Counting the tokens of a dialogue while it runs, and stopping at a limit; apart from the dialogue, which only asks how it stands."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult


class TokensSpent(Exception):
    """A model call that the dialogue's limit of tokens does not allow."""


class Meter(BaseCallbackHandler):
    """Adds up what model calls say of their usage, prompt and completion, and lets none begin once `limit` is reached.

    LangChain tells callbacks of a call before making it; raising there is what keeps it from being made. A call without usage counts its
    token ids, one without either nothing.
    """

    raise_error = True
    run_inline = True

    def __init__(self, limit: int, spent: int = 0) -> None:
        self.limit, self.spent = limit, spent
        self.stopped = False

    def on_chat_model_start(self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any) -> None:
        self._check()

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        self._check()

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        for generations in response.generations:
            for generation in generations[:1]:
                self.spent += _tokens(getattr(generation, "message", None))

    def _check(self) -> None:
        if self.spent >= self.limit:
            self.stopped = True
            raise TokensSpent(f"{self.spent} tokens are spent of the {self.limit} that the dialogue may take")


def _tokens(message: Any) -> int:
    usage = getattr(message, "usage_metadata", None)
    if usage:
        return int(usage["total_tokens"])
    told = getattr(message, "response_metadata", None) or {}
    return len(told.get("prompt_ids") or ()) + len(told.get("completion_ids") or ())


__all__ = ["Meter", "TokensSpent"]
