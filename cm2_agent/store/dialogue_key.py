"""The key of a dialogue: one hash of what user and agent said to each other.

Clients that keep a conversation themselves send back what their users saw: words, mostly without the calls in between
and never with our ids. So the key counts the user's messages and the agent's replies by role, text and attachments;
system prompts, reasoning, tool calls and their answers are left out. A longer dialogue's key is made from a shorter
one's, so that a run's costs what the run said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cm2_agent.types.messages import Message
from cm2_agent.types.spoken import spoken

START = b""
"""The key of a dialogue in which nobody has spoken."""
_BYTES = 16


def extended(key: bytes, messages: Iterable[Message]) -> bytes:
    """The key of a dialogue that has gone on with these messages."""
    for message in messages:
        said = spoken(message)
        if said is not None:
            key = hashlib.blake2b(key + said, digest_size=_BYTES).digest()
    return key


__all__ = ["START", "extended"]
