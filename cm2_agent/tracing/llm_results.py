"""Requests, replies and tool results as LangChain's callbacks report them, in one form whatever the provider's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langgraph.types import Command

from cm2_agent.langchain_messages import finish_reason, plain, tool_answer
from cm2_agent.models.reported_calls import report_of
from cm2_agent.types.dialogue_words import as_text
from cm2_agent.types.json_values import CUT_AT, JSON
from cm2_agent.types.messages import ToolSpec

# Our name of a setting → the names under which invocation parameters and LangChain's `ls_*` facts give it.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature", "ls_temperature"),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "ls_max_tokens"),
    "min_p": ("min_p",),
    "typical_p": ("typical_p",),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),
    "length_penalty": ("length_penalty",),
    "seed": ("seed",),
    "stop": ("stop", "stop_sequences", "ls_stop"),
    "bias": ("logit_bias", "allowed_token_ids", "bad_words", "logits_processors"),
    "grammar": (
        "grammar",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_grammar",
        "guided_choice",
        "json_schema",
        "regex",
        "ebnf",
        "response_schema",
        "response_format",
        "format",
    ),
    "tool_choice": ("tool_choice",),
    "n": ("n", "candidate_count"),
    "best_of": ("best_of", "num_beams"),
    "beam_search": ("use_beam_search",),
    "min_tokens": ("min_tokens",),
    "ignore_eos": ("ignore_eos",),
}
_SPELLED = {key: (name, rank) for name, spellings in _SETTINGS.items() for rank, key in enumerate(spellings)}
# What leaves sampling as it is, of the settings that are given where nothing is asked for.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("auto", "none", {"type": "auto"}, {"type": "none"}),
    "grammar": ({"type": "text"}, ""),
    "bias": ({}, []),
    "n": (1,),
    "best_of": (1,),
    "beam_search": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
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


_NOTHING = ResponseMetadata()


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


def tool_specs(tools: Any) -> tuple[ToolSpec, ...]:
    """The tools of an `invocation_params["tools"]` list, in OpenAI's, Anthropic's or the flat form; a provider's own
    tool by its type."""
    return tuple(_tool_spec(tool) for tool in tools if isinstance(tool, Mapping)) if isinstance(tools, Sequence) else ()


def _tool_spec(tool: Mapping[str, Any]) -> ToolSpec:
    inner = tool.get("function")
    inner = inner if isinstance(inner, Mapping) else tool
    parameters = inner.get("parameters") or inner.get("input_schema") or {}
    return ToolSpec(
        name=str(inner.get("name") or tool.get("type") or ""),
        description=str(inner.get("description") or ""),
        parameters=plain(parameters) if isinstance(parameters, Mapping) else {},
    )


def read_request(params: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str | None, dict[str, JSON]]:
    """The model asked for and the sampling settings, from the invocation parameters of one call (what is bound to the
    model or given with the call wins over the model's own) and LangChain's facts about it."""
    model = params.get("model") or params.get("model_name") or facts.get("ls_model_name")
    extra = params.get("extra_body")
    sources = (params, extra, facts) if isinstance(extra, Mapping) else (params, facts)
    settings: dict[str, JSON] = {}
    for source in sources:
        keys = [key for key in source if key in _SPELLED]
        if not keys:
            continue
        found: dict[str, tuple[int, Any]] = {}
        for key in keys:
            (name, rank), value = _SPELLED[key], source[key]
            if value is not None and name not in settings and rank <= found.get(name, (rank,))[0]:
                found[name] = rank, value
        settings |= {name: plain(value) for name, (_, value) in found.items()}
    if not settings:
        return (str(model) if model else None), settings
    neutral = [name for name, values in _NEUTRAL.items() if name in settings and settings[name] in values]
    for name in neutral:
        del settings[name]
    return (str(model) if model else None), settings


def read_response(response: LLMResult) -> tuple[BaseMessage | None, ResponseMetadata]:
    """The first generation's message and what its metadata reports: under the keys of `LocalChatModel`, else under
    those of OpenAI-like providers."""
    generation = response.generations[0][0] if response.generations and response.generations[0] else None
    if generation is None:
        return None, ResponseMetadata()
    message = generation.message if isinstance(generation, ChatGeneration) else AIMessage(content=generation.text)
    metadata: Mapping[str, Any] = message.response_metadata or generation.generation_info or {}
    if proxied := report_of(message.id):
        metadata = {**metadata, **proxied}
    if not metadata:
        usage = _usage(message, metadata, response.llm_output)
        return message, ResponseMetadata(usage=usage) if usage else _NOTHING
    reported = metadata.get("sampling")
    sampling = plain(reported) if isinstance(reported, Mapping) else {}
    if metadata.get("untrainable"):
        sampling = {**sampling, "untrainable": str(metadata["untrainable"])}
    return message, ResponseMetadata(
        model=_text(metadata.get("model_name") or metadata.get("model")),
        model_version=_text(metadata.get("model_version") or metadata.get("system_fingerprint")),
        prompt_ids=_numbers(metadata.get("prompt_ids")),
        completion_ids=_numbers(metadata.get("completion_ids")),
        logprobs=_logprobs(metadata.get("logprobs")),
        sampling=sampling,
        usage=_usage(message, metadata, response.llm_output),
        finish_reason=finish_reason(metadata),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool answered, its error message if it failed, the id of the call that it answers, and what it gave the
    application beside the answer."""

    result: JSON = None
    error: str | None = None
    call_id: str | None = None
    artifact: JSON = None


def read_tool_result(output: Any, call_id: str | None) -> ToolResult:
    """A tool's result, from whatever it returned."""
    message = output
    if isinstance(output, Command):
        update = output.update if isinstance(output.update, Mapping) else {}
        answers = [item for item in update.get("messages") or () if isinstance(item, ToolMessage)]
        message = next((item for item in answers if item.tool_call_id == call_id), answers[0] if answers else None)
        if message is None:
            return ToolResult(result=plain(dict(update)) if update else None, call_id=call_id)
    if isinstance(message, ToolMessage):
        answer = tool_answer(message.content)
        return ToolResult(
            result=answer,
            error=as_text(answer) if message.status == "error" else None,
            call_id=message.tool_call_id,
            artifact=None if message.artifact is None else plain(message.artifact, CUT_AT),
        )
    return ToolResult(result=plain(output), call_id=call_id)


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


def _usage(message: BaseMessage, metadata: Mapping[str, Any], llm_output: Any) -> dict[str, int]:
    """Tokens by kind: `input_tokens`, `output_tokens`, and what is known of them beyond (`cache_read`,
    `cache_creation`, `reasoning`, `audio_input`, …), where it is more than 0."""
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    if usage:
        out = {"input_tokens": usage["input_tokens"], "output_tokens": usage["output_tokens"]}
        _add_details(out, usage.get("input_token_details"), "input")
        _add_details(out, usage.get("output_token_details"), "output")
        return out
    for source in (llm_output, metadata):
        reported = source.get("token_usage") if source and isinstance(source, Mapping) else None
        if isinstance(reported, Mapping):
            names = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
            out = {name: int(reported[key]) for name, key in names.items() if isinstance(reported.get(key), int)}
            _add_details(out, reported.get("prompt_tokens_details"), "input")
            _add_details(out, reported.get("completion_tokens_details"), "output")
            return out
    return {}


# OpenAI's names of the details → LangChain's.
_DETAILS = {"cached_tokens": "cache_read", "reasoning_tokens": "reasoning", "audio_tokens": "audio"}


def _add_details(out: dict[str, int], details: Any, side: str) -> None:
    for key, number in details.items() if isinstance(details, Mapping) else ():
        name = _DETAILS.get(str(key), str(key))
        if isinstance(number, int) and number:
            out[f"{name}_{side}" if name == "audio" or name in out else name] = number
