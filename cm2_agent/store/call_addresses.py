"""The contents that a model call refers to: what the run's dialogue says anyway is stored by its place there."""

from __future__ import annotations

from typing import Any

from cm2_agent.store.codec import DIGEST, split_digests

_MOST = 255


def message_at(messages: bytes, place: int) -> bytes | None:
    """The address of a run's message, None where it has none in that place."""
    return messages[place * DIGEST : (place + 1) * DIGEST] or None if place >= 0 else None


def before(messages: bytes, place: int, addresses: bytes) -> bytes:
    """How many messages these are, as one byte, where they are the run's before a place; else the addresses."""
    size = len(addresses)
    start = place * DIGEST - size
    count = size // DIGEST
    own = 0 < count <= _MOST and start >= 0 and messages[start : start + size] == addresses
    return bytes([count]) if own else addresses


def input_of(row: Any, messages: bytes) -> bytes:
    """The addresses of what a row of `model_calls` adds to its base's input; `messages` are its run's."""
    stored = bytes(row.input)
    if len(stored) != 1:
        return stored
    return messages[(row.message - stored[0]) * DIGEST : row.message * DIGEST]


def output_of(row: Any, messages: bytes) -> bytes | None:
    """The address of the answer in a row of `model_calls`, None where there is none."""
    if row.output is None:
        return None if row.message is None else message_at(messages, row.message)
    return bytes(row.output) or None


def stored_addresses(shown: bytes, output: bytes | None, toolset: bytes | None) -> list[bytes]:
    """The addresses that stand in these columns of `model_calls` themselves."""
    return [*split_digests(shown if len(shown) != 1 else b""), *(one for one in (output, toolset) if one)]


__all__ = ["before", "input_of", "message_at", "output_of", "stored_addresses"]
