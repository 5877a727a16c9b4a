"""Chat models behind an OpenAI-compatible server, with the token ids that vLLM and SGLang give.

Both report the token ids they read and wrote when asked to, and langchain-openai drops them. The subclass here puts
them into `response_metadata`, under the same names as a local model's. A server that reports none yields text-only
messages: fit for imitation, not for GRPO. Importing this module raises MissingExtra without the extra `openai`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, InvalidToolCall
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import PrivateAttr

from cm2_agent.errors import MissingExtra
from cm2_agent.models.chat_template import REASONING
from cm2_agent.models.endpoint_sampling import (
    EXTRA_KEYS,
    SAMPLING,
    TOKEN_ID_KEYS,
    VLLM_EXTRA,
    VLLM_SAMPLING,
    logprobs_kind,
    not_plain,
    sampling_of,
    with_extra_body,
)
from cm2_agent.models.endpoint_tokens import ReportedTokens
from cm2_agent.models.reasoning_text import ReasoningStream, split_reasoning
from cm2_agent.models.served_name import served_name

try:
    from langchain_openai import ChatOpenAI
    from openai import DefaultAsyncHttpxClient
except ImportError as error:
    raise MissingExtra("openai", "OpenAI-compatible endpoints") from error

_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
_CHUNK = "cm2_chunk"  # in a chunk's generation info, between the two methods that make and read it
_DRAFT = "the call was drafted in thinking that never ended; expected it after the thinking"
# Services whose models refuse settings that they fix, even at the value that they fix.
_HOSTED = ("api.openai.com", ".openai.azure.com", "api.anthropic.com")


def openai_compatible(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    model_version: str | None = None,
    token_ids: bool = False,
    server: str = "vllm",
    logprobs_mode: str | None = None,
    **settings: Any,
) -> BaseChatModel:
    """A chat model at `base_url`, such as "http://localhost:8000/v1".

    Every sampling setting is sent, and recorded as the call was sent it, since a server's own defaults would shape the
    distribution unseen: temperature 1 and top_p 1 unless `settings` say otherwise (not to OpenAI, Azure and Anthropic,
    whose models refuse what they fix), and with `token_ids` no penalties, top_k -1, min_p 0 and repetition_penalty 1.

    Args:
        base_url: the server's address, with the path before `/chat/completions`.
        model: the name under which the server knows the model; `openai-chat:NAME` is NAME.
        api_key: sent as the bearer token. Without one, OPENAI_API_KEY of the environment goes to api.openai.com, and
            none to any other server.
        model_version: names the weights that are served. Default: the server's own name for the model, so serve each
            policy under a name of its own (`deploy` does).
        token_ids: ask for token ids and logprobs, as `server` understands it; other servers may refuse the request.
        server: "vllm" or "sglang": how token ids are asked for.
        logprobs_mode: what the server takes logprobs of: "raw" (before temperature and truncation: vLLM's default),
            "scaled" (after temperature and before truncation: SGLang's), or "processed" (after both: vLLM with
            `--logprobs-mode processed_logprobs`). None: not known; then only temperature 1 without truncation, where
            the three are the same, can be trained on.
        settings: go to ChatOpenAI (temperature, top_p, max_tokens, timeout, …); vLLM's own, such as top_k, into the
            request's extra body.

    Raises:
        ValueError: another `logprobs_mode` or `server`.
        MissingExtra: on import, without langchain-openai; the message is the pip line.

    >>> from cm2_agent import openai_compatible
    >>> model = openai_compatible("http://localhost:8000/v1", "Qwen/Qwen3-8B", token_ids=True, temperature=0.7)
    >>> model.model_name, model.logprobs, model.temperature, model.top_p
    ('Qwen/Qwen3-8B', True, 0.7, 1.0)
    """
    if server not in TOKEN_ID_KEYS:
        raise ValueError(f"server {server!r}: expected {' or '.join(map(repr, TOKEN_ID_KEYS))}")
    host = urlsplit(base_url).hostname or ""
    sent = {} if host.endswith(_HOSTED) else dict(SAMPLING)
    own: dict[str, Any] = {}
    if token_ids:
        own = {**VLLM_EXTRA, **TOKEN_ID_KEYS[server]}
        sent |= {**VLLM_SAMPLING, "stream_usage": True}
        settings["logprobs"] = True
    settings = {name: value for name, value in sent.items() if name not in settings.get("model_kwargs", {})} | settings
    if own or EXTRA_KEYS & settings.keys():
        settings = with_extra_body(settings, own)
    if api_key is not None or host != "api.openai.com":
        settings["api_key"] = api_key or "none"
    return EndpointChatModel(
        base_url=base_url,
        model=served_name(model),
        served_version=model_version,
        server=server,
        logprobs_mode=logprobs_mode,
        # An OpenAI-compatible server speaks chat completions; few speak the responses protocol.
        use_responses_api=False,
        **settings,
    )


class EndpointChatModel(ChatOpenAI):
    """The chat model that `openai_compatible` makes: ChatOpenAI that passes on what the server reports about tokens.

    Each AIMessage carries in `response_metadata`: `model_name`, `model_version`, `sampling` (what this call was sent:
    the model's settings, and what `bind` or `invoke` gave in their place), `finish_reason`, and, where the server gives
    token ids, `prompt_ids`, `completion_ids` and `logprobs`; `untrainable` says why these cannot be trained on: they
    are incomplete, are not as many as the usage says, or do not decode to the text. Thinking in the text is in
    `additional_kwargs["reasoning_content"]`, as is reasoning that a server reports beside the text.

    >>> from cm2_agent import EndpointChatModel, openai_compatible
    >>> isinstance(openai_compatible("http://localhost:8000/v1", "qwen3-8b"), EndpointChatModel)
    True
    """

    served_version: str | None = None
    server: str = "vllm"
    logprobs_mode: str | None = None

    # Itself, with connections of an event loop's own: ChatOpenAI shares them by address, and a loop that has ended
    # (`asyncio.run` to collect, then to collect again) leaves connections that no other can use.
    _of_loop: dict[asyncio.AbstractEventLoop, Self] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        logprobs_kind(self.logprobs_mode)  # refuse a bad one now rather than at the first call

    def _get_request_payload(self, input_: Any, *, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_request_payload(input_, stop=stop, **self._settings(kwargs))

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop, **self._settings(kwargs))

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """What a call gives, with the model's extra body below its own; no empty list of tools: servers refuse it."""
        if "tools" in given and not given["tools"]:
            given = {name: value for name, value in given.items() if name not in _OF_TOOLS}
        return with_extra_body(given, self.extra_body)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return self._with_sampling(super()._generate(messages, stop, run_manager, **kwargs), stop, kwargs)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        result = await ChatOpenAI._agenerate(self._here(), messages, stop, run_manager, **kwargs)
        return self._with_sampling(result, stop, kwargs)

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        stop, run_manager, kwargs = _arguments(*args, **kwargs)
        stream = _Stream(self._sampling(stop, kwargs), self.served_version, self.server)
        # the callbacks are not ChatOpenAI's to tell: they must not hear what the model thinks either
        for chunk in super()._stream(messages, stop=stop, **kwargs):
            made = stream.take(chunk)
            if run_manager is not None:
                run_manager.on_llm_new_token(made.text, chunk=made)
            yield made
        yield stream.last()

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        stop, run_manager, kwargs = _arguments(*args, **kwargs)
        stream = _Stream(self._sampling(stop, kwargs), self.served_version, self.server)
        async for chunk in ChatOpenAI._astream(self._here(), messages, stop=stop, **kwargs):
            made = stream.take(chunk)
            if run_manager is not None:
                await run_manager.on_llm_new_token(made.text, chunk=made)
            yield made
        yield stream.last()

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        data = response if isinstance(response, dict) else response.model_dump(warnings=False)
        for number, generation in enumerate(result.generations):
            choice = data["choices"][number]
            reported = ReportedTokens(ids_at_end=self.server == "sglang", choices=len(data["choices"]))
            reported.add({**data, "choices": [choice]})
            name = str(data.get("model") or self.model_name)
            generation.generation_info = {
                **(generation.generation_info or {}),
                "model_name": name,
                "model_version": self.served_version or name,
                **reported.metadata(),
            }
            if isinstance(generation.message, AIMessage):
                generation.message = _without_thinking(generation.message, choice["message"])
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        made = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        if made is not None:
            made.generation_info = {**(made.generation_info or {}), _CHUNK: chunk}
        return made

    def _here(self) -> Self:
        if self.http_async_client is not None:  # the caller's own
            return self
        loop = asyncio.get_running_loop()
        if loop not in self._of_loop:
            for ended in [one for one in self._of_loop if one.is_closed()]:
                del self._of_loop[ended]
            client = self.root_async_client.copy(http_client=DefaultAsyncHttpxClient())
            own = {"root_async_client": client, "async_client": client.chat.completions}
            self._of_loop[loop] = self.model_copy(update=own)
        return self._of_loop[loop]

    def _sampling(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        """What the metadata says of one call's sampling."""
        request = {**self._default_params, **self._settings(given), **({} if stop is None else {"stop": stop})}
        problem = not_plain(request)
        return {"sampling": sampling_of(request, logprobs_kind(self.logprobs_mode))} | (
            {} if problem is None else {"untrainable": problem}
        )

    def _with_sampling(self, result: ChatResult, stop: list[str] | None, given: dict[str, Any]) -> ChatResult:
        facts = self._sampling(stop, given)
        for generation in result.generations:
            generation.generation_info = {**facts, **(generation.generation_info or {})}
        return result


def _arguments(
    stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
) -> tuple[list[str] | None, Any, dict[str, Any]]:
    return stop, run_manager, kwargs


def _without_thinking(message: AIMessage, sent: dict[str, Any]) -> AIMessage:
    """The message without the thinking in its text, and with the reasoning that the server reported beside it."""
    if not isinstance(message.content, str):
        return message
    reported = _reported_thinking(sent)
    thinking, said = split_reasoning(message.content)
    if not thinking and not reported and said == message.content:
        return message
    together = "\n".join(part for part in (reported, thinking) if part)
    update: dict[str, Any] = {
        "content": said,
        "additional_kwargs": message.additional_kwargs | ({REASONING: together} if together else {}),
    }
    if thinking and not said and message.content.rstrip().endswith(thinking):
        # it never ended, so whatever calls the server's parser found were drafted in it
        drafts = [
            InvalidToolCall(
                name=call["name"],
                args=json.dumps(call["args"], ensure_ascii=False),
                id=call["id"],
                error=_DRAFT,
                type="invalid_tool_call",
            )
            for call in message.tool_calls
        ]
        update |= {"tool_calls": [], "invalid_tool_calls": [*message.invalid_tool_calls, *drafts]}
    return message.model_copy(update=update)


def _reported_thinking(sent: dict[str, Any]) -> str:
    """The thinking that a server's own parser split off, under the names that vLLM and others have for it."""
    return next((sent[key] for key in ("reasoning_content", "reasoning") if isinstance(sent.get(key), str)), "")


class _Stream:
    """One stream: thinking is split off as it comes, and what was reported of tokens comes with the last chunk, so that
    a stream that is broken off has none."""

    def __init__(self, facts: dict[str, Any], version: str | None, server: str) -> None:
        self.facts, self.version = facts, version
        self.reported = ReportedTokens(streamed=True, ids_at_end=server == "sglang")
        self.text = ReasoningStream()

    def take(self, made: ChatGenerationChunk) -> ChatGenerationChunk:
        info = dict(made.generation_info or {})
        chunk = info.pop(_CHUNK, {})
        chunk = chunk.get("chunk") or chunk  # as the client's helper for structured output wraps it
        self.reported.add(chunk)
        if self.reported.ids_at_end or self.reported.prompt_ids is not None or self.reported.completion_ids is not None:
            info.pop("logprobs", None)  # they come as numbers, with the ids
        delta = (chunk.get("choices") or [{}])[0].get("delta") or {}
        reported = _reported_thinking(delta)
        more = {"refusal": delta["refusal"]} if delta.get("refusal") else {}
        message = made.message
        if not isinstance(message, AIMessageChunk) or not isinstance(message.content, str):
            return ChatGenerationChunk(message=message, generation_info=info or None)
        thinking, said = self.text.feed(message.content)
        drafts = message.tool_call_chunks if self.text.inside else []
        thinking += "".join(f"{call.get('name') or ''}{call.get('args') or ''}" for call in drafts)
        thinking = reported + thinking
        if thinking or drafts or more or said != message.content:
            message = AIMessageChunk(
                content=said,
                additional_kwargs=message.additional_kwargs | more | ({REASONING: thinking} if thinking else {}),
                tool_call_chunks=[] if drafts else message.tool_call_chunks,
                response_metadata=message.response_metadata,
                usage_metadata=message.usage_metadata,
                id=message.id,
            )
        return _chunk(message, info)

    def last(self) -> ChatGenerationChunk:
        """What was held back, and the metadata of the whole."""
        thinking, said = self.text.end()
        reported = self.reported.metadata()
        info = {**self.facts, **reported}
        if self.reported.model is not None:
            info["model_version"] = self.version or self.reported.model
        return _chunk(AIMessageChunk(content=said, additional_kwargs={REASONING: thinking} if thinking else {}), info)


def _chunk(message: AIMessageChunk, info: dict[str, Any]) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=message, generation_info=info or None)
