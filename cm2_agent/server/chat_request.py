"""A client's request as it goes upstream: with token ids and logprobs asked for, and sampling said in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cm2_agent.models.endpoint_sampling import (
    SAMPLING,
    TOKEN_ID_KEYS,
    VLLM_EXTRA,
    VLLM_SAMPLING,
    logprobs_kind,
    not_plain,
    sampling_of,
)

__all__ = ["Asked", "Upstream", "asked_of"]


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """How the server behind the proxy is asked: `server` is `vllm`, `sglang`, `none` for one that gives no token ids,
    or `auto` where it is to say so itself."""

    server: str = "auto"
    logprobs_mode: str | None = None
    model_version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request: as the client made it, as it is sent, and what of the answer the client did not ask for."""

    given: Mapping[str, Any]
    sent: Mapping[str, Any]
    sampling: Mapping[str, Any]
    upstream: Upstream
    strip_logprobs: bool
    strip_ids: bool
    strip_usage: bool

    @property
    def stream(self) -> bool:
        return self.given.get("stream") is True


def asked_of(given: Mapping[str, Any], upstream: Upstream) -> Asked:
    """What is sent for a client's request. To a server of token ids every sampling setting is sent, as our own model
    of an endpoint does, since the server's own defaults would shape the distribution unseen."""
    sent: dict[str, Any] = dict(given)
    if not sent.get("tools") and "tools" in sent:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            sent.pop(name, None)
    keys: Mapping[str, Any] = {}
    gives_ids = upstream.server in TOKEN_ID_KEYS
    if gives_ids:
        keys = TOKEN_ID_KEYS[upstream.server]
        for name, value in {**SAMPLING, **VLLM_SAMPLING, **VLLM_EXTRA}.items():
            if sent.get(name) is None:
                sent[name] = value
        sent |= {**keys, "logprobs": True}
        if sent.get("stream"):
            sent["stream_options"] = {**(sent.get("stream_options") or {}), "include_usage": True}
    sampling = sampling_of(sent, logprobs_kind(upstream.logprobs_mode))
    problem = not_plain(sent)
    options = given.get("stream_options") or {}
    return Asked(
        given=given,
        sent=sent,
        sampling=sampling if problem is None else {**sampling, "untrainable": problem},
        upstream=upstream,
        strip_logprobs=gives_ids and not given.get("logprobs"),
        strip_ids=gives_ids and not any(given.get(name) for name in keys),
        strip_usage=gives_ids and not (isinstance(options, Mapping) and options.get("include_usage")),
    )
