"""What models and tools tell LangChain's callbacks, read into our words; apart from `tracing` since every provider says
it differently."""

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
class Answer:
    """What a model told about its answer beside the message; None and empty where it told nothing."""

    model: str | None = None
    model_version: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    finish_reason: str | None = None


class ToolSpecs:
    """Reads the tools offered to a model; the last few lists are remembered, since an agent offers the same at every
    call."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._known: dict[tuple[int, ...], tuple[Sequence[Any], tuple[ToolSpec, ...]]] = {}

    def read(self, tools: Any) -> tuple[ToolSpec, ...]:
        if not isinstance(tools, Sequence) or not tools:
            return ()
        identity = tuple(map(id, tools))
        known = self._known.get(identity)
        if known is not None:
            return known[1]
        specs = tool_specs(tools)
        if len(self._known) >= self._size:
            self._known.clear()
        self._known[identity] = (list(tools), specs)  # holding the tools keeps their identities theirs
        return specs


def read_request(params: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str | None, dict[str, JSON]]:
    """The model asked for and the sampling settings, from a chat model's invocation parameters and LangChain's facts
    about it."""
    model = params.get("model") or params.get("model_name") or facts.get("ls_model_name")
    extra = params.get("extra_body")
    sources = (params, extra, facts) if isinstance(extra, Mapping) else (params, facts)
    settings: dict[str, JSON] = {}
    for name, spellings in _SETTINGS.items():
        for source in sources:
            value = next((source[spelling] for spelling in spellings if source.get(spelling) is not None), None)
            if value is not None:
                settings[name] = plain(value)
                break
    return (str(model) if model else None), settings


def read_answer(response: LLMResult) -> tuple[BaseMessage | None, Answer]:
    """The first generation's message and what its metadata tells: our contract's keys, else what OpenAI-like providers
    give."""
    generation = response.generations[0][0] if response.generations and response.generations[0] else None
    if generation is None:
        return None, Answer()
    message = generation.message if isinstance(generation, ChatGeneration) else AIMessage(content=generation.text)
    said: Mapping[str, Any] = message.response_metadata or generation.generation_info or {}
    sampling = said.get("sampling")
    return message, Answer(
        model=_text(said.get("model_name") or said.get("model")),
        model_version=_text(said.get("model_version") or said.get("system_fingerprint")),
        prompt_ids=_numbers(said.get("prompt_ids")),
        completion_ids=_numbers(said.get("completion_ids")),
        logprobs=_logprobs(said.get("logprobs")),
        sampling=plain(sampling) if isinstance(sampling, Mapping) else {},
        usage=_usage(message, response.llm_output),
        finish_reason=finish_reason(said),
    )


def tool_answer(output: Any, call_id: str | None) -> tuple[JSON, str | None, str | None]:
    """What a tool answered: the result, what it says of a failure, and the id of the call it answers."""
    message = output
    if isinstance(output, Command):
        update = output.update if isinstance(output.update, Mapping) else {}
        said = (
            [item for item in update.get("messages") or () if isinstance(item, ToolMessage)]
            if isinstance(update, Mapping)
            else []
        )
        message = next((item for item in said if item.tool_call_id == call_id), said[0] if said else None)
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
        given = [token.get("logprob") for token in content if isinstance(token, Mapping)]
        return tuple(float(item) for item in given if item is not None) if None not in given else None
    return _numbers(value)


def _usage(message: BaseMessage, llm_output: Any) -> dict[str, int]:
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    if usage:
        out = {"input_tokens": usage["input_tokens"], "output_tokens": usage["output_tokens"]}
        cached = (usage.get("input_token_details") or {}).get("cache_read")
        thought = (usage.get("output_token_details") or {}).get("reasoning")
        return out | ({"cache_read": cached} if cached else {}) | ({"reasoning": thought} if thought else {})
    told = (llm_output or {}).get("token_usage") if isinstance(llm_output, Mapping) else None
    if isinstance(told, Mapping):
        names = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
        return {ours: int(told[theirs]) for ours, theirs in names.items() if isinstance(told.get(theirs), int)}
    return {}
