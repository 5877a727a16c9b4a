"""What a client may say of its spans, and what only the collector may.

Reward, policy version, project, task, rollout and the trust in a tool's answer decide what is trained on: whoever can
send spans could forge them. So of our own attributes only those are taken that describe what the client itself saw."""

from __future__ import annotations

from typing import Final

from cm2_agent.dialects import semconv

__all__ = ["OURS", "is_taken"]

OURS: Final = "cm2."
"""What the names of our attributes begin with."""
_TAKEN: Final = frozenset(
    (semconv.PROMPT_IDS, semconv.COMPLETION_IDS, semconv.LOGPROBS, semconv.SAMPLING, semconv.STATUS)
)
"""Tokens, how they were sampled, and how a run ended."""
_METADATA: Final = "cm2.metadata."


def is_taken(name: str) -> bool:
    """Whether a client may give the attribute of ours: what it saw itself, and its own metadata.

    >>> is_taken("cm2.logprobs"), is_taken("cm2.metadata.region"), is_taken("cm2.reward.version")
    (True, True, False)
    >>> is_taken("cm2.metadata.cm2.group")
    False
    """
    return name in _TAKEN or (name.startswith(_METADATA) and not name.startswith(OURS, len(_METADATA)))
