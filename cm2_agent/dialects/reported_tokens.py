"""Token ids in an OpenAI-compatible server's whole response, where an instrumentation keeps it as JSON."""

from __future__ import annotations

from collections.abc import Mapping

from cm2_agent.dialects.token_text import Tokens, checked_tokens
from cm2_agent.dialects.values import parsed
from cm2_agent.models.endpoint_tokens import ReportedTokens
from cm2_agent.types.json_values import JSON


def tokens_of_response(value: JSON) -> Tokens:
    """The ids and logprobs of a response's first completion; none where the server gave none."""
    data = parsed(value)
    choices = data.get("choices") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(choices, list) or not choices:
        return Tokens()
    if not isinstance(choices[0], Mapping) or not isinstance(choices[0].get("token_ids"), list):
        return Tokens()
    reported = ReportedTokens(choices=len(choices))
    reported.add(data)
    return tokens_reported(reported)


def tokens_reported(reported: ReportedTokens) -> Tokens:
    """What was gathered of one completion, as tuples; `problem` says why it cannot be trained on."""
    found = reported.metadata()
    if "completion_ids" not in found:
        return Tokens()
    prompt = found.get("prompt_ids")
    completion, logprobs = tuple(found["completion_ids"]), tuple(found["logprobs"])
    tokens = checked_tokens(None if prompt is None else tuple(prompt), completion, logprobs)
    return tokens if tokens.problem is not None else tokens._replace(problem=found.get("untrainable"))


__all__ = ["tokens_of_response", "tokens_reported"]
