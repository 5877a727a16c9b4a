"""Requests, replies and tool results as LangChain's callbacks report them, in one form whatever the provider's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langgraph.types import Command

from cm2_agent.langchain_messages import finish_reason, from_langchain, plain, tool_specs
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec

# Our name of a setting → the names under which invocation parameters and LangChain's `ls_*` facts give it.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature", "ls_temperature"),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens", "ls_max_tokens"),
    "min_p": ("min_p",),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "repetition_penalty": ("repetition_penalty",),
    "seed": ("seed",),
    "stop": ("stop", "stop_sequences", "ls_stop"),
    "grammar": ("grammar", "guided_json", "guided_regex", "guided_grammar", "response_format"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseMetadata:
    """What a model reported about its reply beside the message; None or empty where it reported nothing."""

    model: str | None = None
    model_version: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    finish_reason: str | None = None


class ToolSpecReader:
    """Reads the tools offered to a model; the last few lists are cached, since an agent offers the same at every
    call."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._cache: dict[tuple[int, ...], tuple[Sequence[Any], tuple[ToolSpec, ...]]] = {}

    def read(self, tools: Any) -> tuple[ToolSpec, ...]:
        if not isinstance(tools, Sequence) or not tools:
            return ()
        identity = tuple(map(id, tools))
        cached = self._cache.get(identity)
        if cached is not None:
            return cached[1]
        specs = tool_specs(tools)
        if len(self._cache) >= self._size:
            self._cache.clear()
        self._cache[identity] = (list(tools), specs)  # while the tools are held, no other object gets their ids
        return specs


def read_request(params: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str | None, dict[str, JSON]]:
    """The model asked for and the sampling settings, from a chat model's invocation parameters and LangChain's facts
    about it."""
    model = params.get("model") or params.get("model_name") or facts.get("ls_model_name")
    extra = params.get("extra_body")
    sources = (params, extra, facts) if isinstance(extra, Mapping) else (params, facts)
    settings: dict[str, JSON] = {}
    for name, spellings in _SETTINGS.items():
        value = _first(sources, spellings)
        if value is not None:
            settings[name] = plain(value)
    return (str(model) if model else None), settings


def _first(sources: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Any:
    """The value of the first source that has one of the keys, None where none has."""
    for source in sources:
        for key in keys:
            value = source.get(key)
            if value is not None:
                return value
    return None


def read_response(response: LLMResult) -> tuple[BaseMessage | None, ResponseMetadata]:
    """The first generation's message and what its metadata reports: under the keys of `LocalChatModel`, else under
    those of OpenAI-like providers."""
    generation = response.generations[0][0] if response.generations and response.generations[0] else None
    if generation is None:
        return None, ResponseMetadata()
    message = generation.message if isinstance(generation, ChatGeneration) else AIMessage(content=generation.text)
    metadata: Mapping[str, Any] = message.response_metadata or generation.generation_info or {}
    sampling = metadata.get("sampling")
    return message, ResponseMetadata(
        model=_text(metadata.get("model_name") or metadata.get("model")),
        model_version=_text(metadata.get("model_version") or metadata.get("system_fingerprint")),
        prompt_ids=_numbers(metadata.get("prompt_ids")),
        completion_ids=_numbers(metadata.get("completion_ids")),
        logprobs=_logprobs(metadata.get("logprobs")),
        sampling=plain(sampling) if isinstance(sampling, Mapping) else {},
        usage=_usage(message, response.llm_output),
        finish_reason=finish_reason(metadata),
    )


def read_tool_result(output: Any, call_id: str | None) -> tuple[JSON, str | None, str | None]:
    """A tool's result, its error message if it failed, and the id of the call that it answers."""
    message = output
    if isinstance(output, Command):
        update = output.update if isinstance(output.update, Mapping) else {}
        answers = [item for item in update.get("messages") or () if isinstance(item, ToolMessage)]
        message = next((item for item in answers if item.tool_call_id == call_id), answers[0] if answers else None)
        if message is None:
            return plain(dict(update)) if update else None, None, call_id
    if isinstance(message, ToolMessage):
        answer = from_langchain(message).responses[0].response
        failed = answer if isinstance(answer, str) else str(answer)
        return answer, failed if message.status == "error" else None, message.tool_call_id
    return plain(output), None, call_id


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _numbers(value: Any) -> tuple[Any, ...] | None:
    return tuple(value) if isinstance(value, list | tuple) else None


def _logprobs(value: Any) -> tuple[float, ...] | None:
    """A list of numbers, or OpenAI's `{"content": [{"logprob": …}, …]}`."""
    if isinstance(value, Mapping):
        content = value.get("content")
        if not isinstance(content, list) or not content:
            return None
        values = [token.get("logprob") for token in content if isinstance(token, Mapping)]
        return tuple(float(value) for value in values if value is not None) if None not in values else None
    return _numbers(value)


def _usage(message: BaseMessage, llm_output: Any) -> dict[str, int]:
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    if usage:
        out = {"input_tokens": usage["input_tokens"], "output_tokens": usage["output_tokens"]}
        cached = (usage.get("input_token_details") or {}).get("cache_read")
        reasoning = (usage.get("output_token_details") or {}).get("reasoning")
        return out | ({"cache_read": cached} if cached else {}) | ({"reasoning": reasoning} if reasoning else {})
    reported = llm_output.get("token_usage") if isinstance(llm_output, Mapping) else None
    if isinstance(reported, Mapping):
        names = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
        return {name: int(reported[key]) for name, key in names.items() if isinstance(reported.get(key), int)}
    return {}
