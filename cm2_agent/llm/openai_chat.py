"""OpenAI-compatible chat models whose servers leave out of a completion what OpenAI's always holds, and their client.

Imports the openai package, so it is imported where a server is asked."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from openai import AsyncOpenAI, NotGiven, Omit
from openai.resources.chat import AsyncChat, AsyncCompletions
from openai.types import chat
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel

_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


class ServedChatModel(OpenAIChatModel):
    """OpenAIChatModel for any server. A completion without id, model, object or time is one, and a usage of nulls is
    none; an error that comes with status 200, as gateways send them, is that error."""

    def _validate_completion(self, response: chat.ChatCompletion) -> Any:
        given: Any = response
        error: Any = getattr(given, "error", None)
        if not getattr(given, "choices", None) and isinstance(error, dict):
            code = error.get("code")
            status = int(code) if isinstance(code, int | str) and str(code).isdigit() else 502
            raise ModelHTTPError(status, self.model_name, error)
        usage: Any = getattr(given, "usage", None)
        if usage is not None and not all(isinstance(getattr(usage, name, None), int) for name in _USAGE):
            given.usage = None
        known = {"id": "", "model": self.model_name, "object": "chat.completion", "created": 0}
        for name, value in known.items():
            if getattr(given, name, None) is None:
                setattr(given, name, value)
        for number, choice in enumerate(getattr(given, "choices", None) or ()):
            for name, value in (("index", number), ("finish_reason", "stop")):
                if getattr(choice, name, None) is None:
                    setattr(choice, name, value)
            message: Any = getattr(choice, "message", None)
            if message is not None and getattr(message, "role", None) is None:
                message.role = "assistant"
        return super()._validate_completion(response)


class DirectClient(AsyncOpenAI):
    """AsyncOpenAI whose chat completions are sent as they are given. Its own walk through every typed argument changes
    nothing of a chat's messages and takes a tenth of a request's CPU."""

    @cached_property
    def chat(self) -> AsyncChat:
        return _DirectChat(self)


class _DirectChat(AsyncChat):
    @cached_property
    def completions(self) -> AsyncCompletions:
        return _DirectCompletions(self._client)


class _DirectCompletions(AsyncCompletions):
    async def create(self, **given: Any) -> Any:  # all that its overloads take goes through
        if given.get("stream"):
            return await super().create(**given)
        sent = {name: value for name, value in given.items() if not isinstance(value, Omit | NotGiven)}
        options: Any = {"security": {"bearer_auth": True}}
        for name, of in (("extra_headers", "headers"), ("extra_query", "params"), ("extra_body", "extra_json")):
            if (value := sent.pop(name, None)) is not None:
                options[of] = value
        if "timeout" in sent:
            options["timeout"] = sent.pop("timeout")
        return await self._client.post(
            "/chat/completions", body={"stream": False, **sent}, cast_to=chat.ChatCompletion, options=options
        )


__all__ = ["DirectClient", "ServedChatModel"]
