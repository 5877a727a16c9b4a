"""Models by name: any pydantic-ai model, an OpenAI-compatible server by address, or a LangChain chat model.

A wrong name, or a package that is missing, is reported before anything is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast
from weakref import WeakKeyDictionary

from langchain_core.language_models import BaseChatModel
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, infer_model
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings

from cm2_agent.errors import MissingExtra, ModelError
from cm2_agent.llm.langchain_model import LangChainModel
from cm2_agent.models.served_name import served_name
from cm2_agent.types.json_values import JSON

# pydantic-ai takes thinking that never ends for the reply, and a tag within a JSON string for thinking: the readers of
# replies know better (`split_reasoning`, `json_replies`).
_NO_TAGS = ("\0no tag\0", "\0no tag\0")
_LOCAL = "cm2-local"
"""The type of a LocalChatModel, which is not imported here: it needs torch."""
_EXTRAS = {
    "openai": "openai",
    "openai-chat": "openai",
    "openai-responses": "openai",
    "ollama": "openai",
    "anthropic": "anthropic",
    "google": "google",
    "google-gla": "google",
    "google-vertex": "google",
}


def language_model(model: str | Model | BaseChatModel, of: str = "language model") -> Model:
    """The model that a judge, a simulator or a simulated user asks, ready to be given to several of them.

    A client that is made here does not retry: CM2's own retries count every request.

    Args:
        model: A pydantic-ai model or its name (`openai:gpt-5-mini`, `anthropic:…`, `google:…`, `ollama:…`), a LangChain
            chat model, or `local:FOLDER` for a transformers model.
        of: Who asks, as the errors name it.

    Raises:
        MissingExtra: The provider's package is not installed; the message has the pip line.
        ModelError: A name that no provider knows, or a key that is not set.

    >>> from cm2_agent.llm import language_model
    >>> language_model("test").model_name  # pydantic-ai's model for tests, which needs no key
    'test'
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, BaseChatModel):
        return LangChainModel(model, is_local=model._llm_type == _LOCAL)
    if model.startswith("local:"):
        from cm2_agent.models.local import LocalChatModel

        return LangChainModel(LocalChatModel.load(model.removeprefix("local:")), is_local=True)
    provider = model.partition(":")[0]
    try:
        return PerLoopModel(lambda: _without_retries(infer_model(model)))
    except ImportError as error:
        if provider in _EXTRAS:
            raise MissingExtra(_EXTRAS[provider], f"models of {provider}") from error
        raise ModelError(f"the {of} {model!r}: {error}") from error
    except (UserError, ValueError) as error:
        raise ModelError(
            f"the {of} is {model!r}: {error}. Expected PROVIDER:MODEL such as openai:gpt-5-mini with its key set,"
            " local:FOLDER, or openai_model(base_url, model) for a server of your own"
        ) from error


def _without_retries(model: Model) -> Model:
    client: Any = getattr(model, "client", None)
    if client is not None and hasattr(client, "max_retries"):
        client.max_retries = 0
    return model


def openai_model(
    base_url: str,
    model: str,
    api_key: str | None = None,
    *,
    schema: tuple[str, Mapping[str, JSON]] | None = None,
    settings: ModelSettings | None = None,
) -> Model:
    """A model behind an OpenAI-compatible server such as vLLM, llama.cpp or a gateway. Nothing is sent until it is
    asked.

    Args:
        base_url: Where the server is, `http://localhost:8000/v1` say.
        model: The model's name there; `openai-chat:NAME` is NAME.
        api_key: None sends "none", for servers that need no key.
        schema: The name and JSON schema that every reply is held to (`response_format`, strict). None: free text.
        settings: pydantic-ai's model settings, such as `{"temperature": 0}`.

    Raises:
        MissingExtra: The openai package is not installed.

    >>> from cm2_agent.llm import openai_model
    >>> openai_model("http://localhost:8000/v1", "qwen3-8b", settings={"temperature": 0}).model_name
    'qwen3-8b'
    """
    try:
        from pydantic_ai.providers.openai import OpenAIProvider

        from cm2_agent.llm.openai_chat import DirectClient, ServedChatModel
    except ImportError as error:
        raise MissingExtra("openai", "OpenAI-compatible servers") from error

    # The client walks through every typed argument of every call; a body of its own is sent as it is, which saves a
    # fifth of the CPU.
    own = dict(settings or {})
    if schema is not None:
        held = {"type": "json_schema", "json_schema": {"name": schema[0], "strict": True, "schema": dict(schema[1])}}
        own["extra_body"] = {"response_format": held, **cast(dict[str, Any], own.get("extra_body") or {})}

    def make() -> Model:
        client = DirectClient(base_url=base_url, api_key=api_key or "none", max_retries=0)
        return ServedChatModel(
            served_name(model),
            provider=OpenAIProvider(openai_client=client),
            settings=cast(ModelSettings, own) or None,
            profile=ModelProfile(thinking_tags=_NO_TAGS),
        )

    other = cast(dict[str, Any], (settings or {}).get("extra_body") or {})
    return PerLoopModel(make, sends_schema=schema is not None, other_extra_body=other)


class PerLoopModel(WrapperModel):
    """A model with connections of its own in every event loop. Asking runs in more than one (each `asyncio.run`, a
    background worker), and a connection left over from a closed loop fails the next request after it was paid for."""

    def __init__(
        self,
        make: Callable[[], Model],
        *,
        sends_schema: bool = False,
        other_extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """`sends_schema`: the model's own settings hold the reply's schema already, in an extra body;
        `other_extra_body` is the rest of it."""
        super().__init__(make())
        self.sends_schema, self.other_extra_body = sends_schema, dict(other_extra_body or {})
        self._make = make
        self._first: Model | None = (
            self.wrapped
        )  # building a client takes tens of milliseconds, so the first loop gets this one
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Model] = WeakKeyDictionary()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        loop = asyncio.get_running_loop()
        model = self._of_loop.get(loop)
        if model is None:
            model = self._of_loop[loop] = self._first or self._make()
            self._first = None
        return await model.request(messages, model_settings, model_request_parameters)

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        model = self._of_loop.pop(asyncio.get_running_loop(), None)
        client: Any = getattr(model, "client", None)
        if client is not None and hasattr(client, "close"):
            await client.close()


__all__ = ["PerLoopModel", "language_model", "openai_model"]
