"""What a server of OpenAI's chat completions refuses: the stubs on loopback answer as a real one would.

refused = refusal(*request_of(head), body, serves=("stub",))
if refused is not None: status, error = refused
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from openai.types.chat.completion_create_params import CompletionCreateParamsBase

PATH = "/v1/chat/completions"
STANDARD = frozenset(CompletionCreateParamsBase.__annotations__) | {"stream"}
"""The keys of a request that OpenAI knows; it refuses any other."""
VLLM = frozenset(
    (
        *("add_generation_prompt", "allowed_token_ids", "bad_words", "cache_salt", "chat_template_kwargs"),
        *("guided_choice", "guided_grammar", "guided_json", "guided_regex", "ignore_eos", "length_penalty", "min_p"),
        *("include_stop_str_in_output", "min_tokens", "priority", "prompt_logprobs", "repetition_penalty"),
        *("return_token_ids", "return_tokens_as_token_ids", "skip_special_tokens", "stop_token_ids"),
        *("structured_outputs", "top_k", "truncate_prompt_tokens", "use_beam_search", "chat_template", "documents"),
        *("continue_final_message", "echo", "include_reasoning", "logprob_token_ids", "repetition_detection"),
        *("return_weight_versions", "stream_interval", "thinking_token_budget", "truncation_side", "vllm_xargs"),
    )
)
"""What vLLM knows beside them."""
SGLANG = frozenset(
    (
        *("chat_template_kwargs", "custom_logit_processor", "ebnf", "ignore_eos", "lora_path", "min_p", "min_tokens"),
        *("no_stop_trim", "regex", "repetition_penalty", "return_input_ids_in_sglext", "return_output_ids_in_sglext"),
        *("return_token_ids", "separate_reasoning", "skip_special_tokens", "stop_regex", "stop_token_ids", "top_k"),
        "watermark",
    )
)
"""What SGLang knows beside them."""
_RANGES = {"temperature": (0, 2), "top_p": (0, 1), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2)}
_TYPES: dict[str, tuple[type, ...]] = {
    "messages": (list,),
    "tools": (list,),
    "logit_bias": (dict,),
    "logprobs": (bool,),
    "max_completion_tokens": (int,),
    "max_tokens": (int,),
    "n": (int,),
    "response_format": (dict,),
    "seed": (int,),
    "stop": (str, list),
    "stream": (bool,),
    "stream_options": (dict,),
    "tool_choice": (str, dict),
}
_ROLES = ("developer", "system", "user", "assistant", "tool")


def request_of(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers of a request's head."""
    request, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = request.split(" ", 2)
    return method, path, {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def refusal(
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    serves: Collection[str],
    known: Collection[str] = STANDARD,
) -> tuple[int, dict[str, Any]] | None:
    """The status and the body of a refusal; None for a request that a server of these models answers."""
    if path.partition("?")[0] != PATH:
        return 404, _error(f"Invalid URL ({method} {path})")
    if method != "POST":
        return 405, _error(f"Not allowed to {method} on {path}")
    kind, _, key = {name.lower(): value for name, value in headers.items()}.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not key.strip():
        return 401, _error("You didn't provide an API key", code="invalid_api_key")
    try:
        asked = json.loads(body)
    except ValueError:
        return 400, _error("We could not parse the JSON body of your request")
    if not isinstance(asked, dict) or not isinstance(asked.get("model"), str):
        return 400, _error("you must provide a model parameter")
    if asked["model"] not in serves:
        return 404, _error(f"The model `{asked['model']}` does not exist", code="model_not_found")
    problem = _problem(asked, known)
    return None if problem is None else (400, _error(problem))


def _error(message: str, *, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def _problem(asked: Mapping[str, Any], known: Collection[str]) -> str | None:
    unknown = sorted(set(asked) - set(known))
    if unknown:
        return f"Unrecognized request argument supplied: {', '.join(unknown)}"
    for name, types in _TYPES.items():
        if asked.get(name) is not None and not isinstance(asked[name], types):
            return f"Invalid type for '{name}': expected {' or '.join(kind.__name__ for kind in types)}"
    for name, (low, high) in _RANGES.items():
        value = asked.get(name)
        if value is not None and not (isinstance(value, int | float) and low <= value <= high):
            return f"Invalid '{name}': expected a number from {low} to {high}"
    if asked.get("stream_options") is not None and not asked.get("stream"):
        return "The 'stream_options' parameter is only allowed when 'stream' is enabled"
    if asked.get("top_logprobs") and not asked.get("logprobs"):
        return "when using `top_logprobs`, `logprobs` must be set to true."
    if (asked.get("n") or 1) > 1 and asked.get("temperature") == 0:
        return "n must be 1 when using greedy sampling, got 2."
    return _tools(asked) or _messages(asked.get("messages"))


def _tools(asked: Mapping[str, Any]) -> str | None:
    if asked.get("tools") == []:
        return "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
    for tool in asked.get("tools") or ():
        if not isinstance(tool, dict) or not isinstance(tool.get("function", {}).get("name"), str):
            return "Missing required parameter: 'tools[0].function.name'"
    if asked.get("tool_choice") is not None and not asked.get("tools"):
        return "'tool_choice' is only allowed when 'tools' are specified"
    return None


def _messages(messages: Any) -> str | None:
    if not messages:
        return "Invalid 'messages': empty array"
    waiting: list[str] = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            return f"Invalid value: {role!r}. Supported values are: {', '.join(_ROLES)} (messages[{number}].role)"
        if waiting and role != "tool":
            return f"An assistant message with 'tool_calls' must be followed by answers to {', '.join(waiting)}"
        content = message.get("content")
        if not isinstance(content, str | list) and not (role == "assistant" and message.get("tool_calls")):
            return f"Invalid type for 'messages[{number}].content': expected a string or an array"
        if role == "tool":
            if message.get("tool_call_id") not in waiting:
                return f"messages[{number}] with role 'tool' must answer a preceding message with 'tool_calls'"
            waiting.remove(message["tool_call_id"])
        for call in message.get("tool_calls") or () if role == "assistant" else ():
            function = call.get("function") or {}
            if not all(isinstance(value, str) for value in (call.get("id"), *map(function.get, ("name", "arguments")))):
                return f"Invalid 'messages[{number}].tool_calls': expected an id, a name and the arguments as text"
            waiting.append(call["id"])
    return f"An assistant message with 'tool_calls' must be followed by answers to {waiting}" if waiting else None
