"""What is written on a span as text and numbers, and how it is read back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cm2_agent.dialects import semconv
from cm2_agent.dialects.seen_message import SeenMessage
from cm2_agent.dialects.token_text import encode_ids, encode_logprobs
from cm2_agent.langchain_messages import plain
from cm2_agent.tracing.llm_results import ResponseMetadata
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.run_attributes import CHECKPOINT, TOOL_BACKEND, TOOL_FAULT
from cm2_agent.types.secrets import error_text
from cm2_agent.types.text import shorten

_LONGEST = 500
# LangChain's and LangGraph's own metadata: facts about the machinery, not about the run.
_FRAMEWORK_KEYS = ("langgraph_", "ls_", "lc_", "checkpoint", "__pregel", "__")
_SIMPLE = (str, int, float, bool)
_FRAMEWORK_TAGS = ("seq:step", "graph:step", "langsmith:")


def error_message(error: BaseException) -> str:
    """The error in at most 500 characters, without what looks like a credential.

    >>> error_message(ValueError("no route; api_key=abcdef0123456"))
    'ValueError: no route; api_key=***'
    """
    name = type(error).__name__
    return shorten(f"{name}: {error_text(error, _LONGEST)}" if str(error) else name, _LONGEST)


def is_cancel(error: BaseException) -> bool:
    """Whether somebody outside ended the run, rather than the run itself."""
    return isinstance(
        error, asyncio.CancelledError | concurrent.futures.CancelledError | GeneratorExit | KeyboardInterrupt
    )


def caller_facts(metadata: Mapping[str, Any], tags: Sequence[str] | None) -> dict[str, JSON]:
    """What the caller's config says about the run: its metadata without LangChain's and LangGraph's own, and its
    tags."""
    facts = {
        key: plain(value)
        for key, value in metadata.items()
        if isinstance(key, str) and key != "thread_id" and not key.startswith(_FRAMEWORK_KEYS)
    }
    if metadata.get("checkpoint_id"):
        facts[CHECKPOINT] = plain(metadata["checkpoint_id"])
    own = [tag for tag in tags or () if not tag.startswith(_FRAMEWORK_TAGS)]
    return {**facts, "tags": own} if own else facts


def fact_attributes(facts: Mapping[str, JSON]) -> dict[str, Any]:
    """Facts as span attributes: ours under their names, the caller's under `cm2.metadata.`; structures as JSON."""
    return {
        key if key.startswith("cm2.") else f"cm2.metadata.{key}": value
        if isinstance(value, _SIMPLE)
        else json.dumps(value)
        for key, value in facts.items()
        if value is not None
    }


def response_attributes(response: ResponseMetadata, *, content: bool) -> dict[str, Any]:
    """What a model reported, as the conventions name it; the sampling settings that are text (a grammar, stop
    sequences) are content."""
    sampling = {key: value for key, value in response.sampling.items() if content or isinstance(value, int | float)}
    values = {
        semconv.RESPONSE_MODEL: response.model,
        semconv.MODEL_VERSION: response.model_version,
        semconv.FINISH_REASONS: [response.finish_reason] if response.finish_reason else None,
        semconv.INPUT_TOKENS: response.usage.get("input_tokens"),
        semconv.OUTPUT_TOKENS: response.usage.get("output_tokens"),
        semconv.SAMPLING: json.dumps(sampling) if sampling else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def token_attributes(response: ResponseMetadata) -> dict[str, str]:
    """Token ids and logprobs for another CM2 collector."""
    out = {}
    if response.prompt_ids is not None:
        out[semconv.PROMPT_IDS] = encode_ids(response.prompt_ids)
    if response.completion_ids is not None:
        out[semconv.COMPLETION_IDS] = encode_ids(response.completion_ids)
    if response.logprobs is not None:
        out[semconv.LOGPROBS] = encode_logprobs(response.logprobs)
    return out


def as_json(value: Any) -> str:
    """Messages, tool definitions or plain JSON as an attribute's text; text stays as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        value = [
            item.message.to_json()
            if isinstance(item, SeenMessage)
            else item.to_json()
            if isinstance(item, ToolSpec)
            else item
            for item in value
        ]
    return json.dumps(value, ensure_ascii=False)


def tool_facts(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """What a tool call's metadata says about its backend: which one answers, and the fault injected into the call."""
    if not metadata or (TOOL_BACKEND not in metadata and TOOL_FAULT not in metadata):
        return {}
    return {name: metadata[name] for name in (TOOL_BACKEND, TOOL_FAULT) if isinstance(metadata.get(name), str)}
