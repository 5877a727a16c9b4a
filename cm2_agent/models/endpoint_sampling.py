"""How a server was asked to sample: what is sent where nothing is said, and what one call was sent in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "EXTRA_KEYS",
    "SAMPLING",
    "TOKEN_ID_KEYS",
    "VLLM_EXTRA",
    "VLLM_SAMPLING",
    "logprobs_kind",
    "not_plain",
    "sampling_of",
    "with_extra_body",
]

SAMPLING: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0}
"""Sent to every server but a hosted one: a server's own defaults would shape the distribution unseen."""
VLLM_SAMPLING: Mapping[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
VLLM_EXTRA: Mapping[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Beside these, to a server that gives token ids: keys that OpenAI's protocol does not have."""
TOKEN_ID_KEYS: Mapping[str, Mapping[str, bool]] = {
    "vllm": {"return_token_ids": True},
    "sglang": {"return_input_ids_in_sglext": True, "return_output_ids_in_sglext": True},
}
"""How each server is asked for token ids. SGLang's `return_token_ids` is refused with a stream; these are not."""
_KINDS = {
    "raw": "raw",
    "raw_logprobs": "raw",
    "scaled": "scaled",
    "processed": "processed",
    "processed_logprobs": "processed",
}
_RECORDED = (
    *(*SAMPLING, *VLLM_SAMPLING, *VLLM_EXTRA),
    *("typical_p", "length_penalty", "seed", "stop", "stop_token_ids", "stop_regex", "min_tokens"),
)
# Our name of what shapes the distribution → the names under which servers take it.
_SHAPING: Mapping[str, tuple[str, ...]] = {
    "bias": ("logit_bias", "allowed_token_ids", "bad_words", "logits_processors"),
    "grammar": (
        *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        *("grammar", "json_schema", "regex", "ebnf"),
    ),
    "tool_choice": ("tool_choice",),
    "n": ("n",),
    "best_of": ("best_of",),
    "beam_search": ("use_beam_search",),
    "ignore_eos": ("ignore_eos",),
}
_NEUTRAL: tuple[Any, ...] = (None, False, "", {}, [], 1, "auto", "none", {"type": "text"})
# Samplers of other servers, which no trainer follows.
_SAMPLERS = (
    *("top_a", "top_n_sigma", "tfs", "tfs_z", "mirostat", "mirostat_mode", "dynatemp_range", "dynamic_temperature"),
    *("dry_multiplier", "xtc_probability", "epsilon_cutoff", "eta_cutoff", "smoothing_factor", "penalty_alpha"),
    *("no_repeat_ngram_size", "repeat_penalty", "thinking_token_budget"),
    *("custom_logit_processor", "custom_params", "vllm_xargs", "watermark", "watermarking", "repetition_detection"),
)
_LEAST_TEMPERATURE = 0.01  # vLLM samples at no lower one but 0
EXTRA_KEYS = frozenset(
    (
        *VLLM_EXTRA,
        *("typical_p", "length_penalty", "min_tokens", "best_of", "use_beam_search", "ignore_eos"),
        *("allowed_token_ids", "bad_words", "logits_processors", "chat_template_kwargs"),
        *("stop_token_ids", "stop_regex", "include_stop_str_in_output", "skip_special_tokens", "no_stop_trim"),
        *("truncate_prompt_tokens", "chat_template", "documents", "continue_final_message", "add_generation_prompt"),
        *(name for name in _SHAPING["grammar"] if name != "response_format"),
        *_SAMPLERS,
    )
)
"""Settings that the openai client takes in the extra body alone."""


def with_extra_body(settings: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings with one `extra_body`: the model's own, what the settings' own replaces of it, and the keys that can
    stand nowhere else."""
    extra = {**(own or {}), **(settings.get("extra_body") or {})}
    extra |= {name: value for name, value in settings.items() if name in EXTRA_KEYS}
    rest = {name: value for name, value in settings.items() if name not in EXTRA_KEYS and name != "extra_body"}
    return rest | ({"extra_body": extra} if extra else {})


def logprobs_kind(mode: str | None) -> str:
    """What a server takes logprobs of: raw, scaled, processed, or unknown where no mode was given. Raises ValueError.

    >>> logprobs_kind("processed_logprobs"), logprobs_kind(None)
    ('processed', 'unknown')
    """
    if mode is None:
        return "unknown"
    if mode not in _KINDS:
        raise ValueError(
            f"logprobs_mode {mode!r}: expected 'raw' (before temperature and truncation: vLLM's default), 'scaled'"
            " (after temperature, before truncation: SGLang's), 'processed' (after both: vLLM's --logprobs-mode"
            " processed_logprobs), or None where it is not known"
        )
    return _KINDS[mode]


def sampling_of(request: Mapping[str, Any], logprobs: str) -> dict[str, Any]:
    """The sampling settings that a request holds, by our names; what it leaves to the server is not among them.
    `logprobs` is what the server takes them of (`logprobs_kind`)."""
    body = _body(request)
    sampling = {name: body[name] for name in _RECORDED if body.get(name) is not None}
    limit = body.get("max_tokens", body.get("max_completion_tokens"))  # the client sends the first as the second
    if limit is not None:
        sampling["max_tokens"] = limit
    for name, spellings in _SHAPING.items():
        given = [body[key] for key in spellings if body.get(key) not in _NEUTRAL]
        if given:
            sampling[name] = _as_json(given[0])
    held = _held_calls(body)
    if held is not None:
        sampling.setdefault("grammar", held)
    return {**sampling, "logprobs": logprobs}


def not_plain(request: Mapping[str, Any]) -> str | None:
    """Why a request's sampling can be followed by no trainer, beyond what `sampling_of` records; None where it can."""
    body = _body(request)
    used = [name for name in _SAMPLERS if body.get(name) not in (None, False, 0, {})]
    if 0 < (body.get("temperature") or 0) < _LEAST_TEMPERATURE:
        used.append(f"temperature below {_LEAST_TEMPERATURE}")
    return f"not plain sampling: {', '.join(used)}" if used else None


def _held_calls(body: Mapping[str, Any]) -> str | None:
    """Why a server holds the model's calls to a grammar though it may choose whether to call, None where it does
    not."""
    tools = body.get("tools") or ()
    if not tools or body.get("tool_choice") == "none":
        return None
    if any((tool.get("function") or {}).get("strict") for tool in tools):
        return "strict tools"
    return "at most one call" if body.get("parallel_tool_calls") is False else None


def _as_json(value: Any) -> Any:
    """A setting as it can be stored: a schema given as a class by its name."""
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | list) else str(value)


def _body(request: Mapping[str, Any]) -> dict[str, Any]:
    """What goes over the wire: the client lays the extra body over the rest."""
    return {**request, **(request.get("extra_body") or {})}
