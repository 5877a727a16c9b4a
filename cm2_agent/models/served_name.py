"""The name under which an OpenAI-compatible server knows a model."""

from __future__ import annotations

__all__ = ["served_name"]

_PREFIXES = ("openai-chat:", "openai-responses:", "openai:")


def served_name(model: str) -> str:
    """What a server is sent: the name without the provider that pydantic-ai's names begin with, which is given by the
    address already. Any other colon belongs to the name.

    >>> served_name("openai-chat:qwen3-8b"), served_name("qwen3:8b")
    ('qwen3-8b', 'qwen3:8b')
    """
    prefix = next((prefix for prefix in _PREFIXES if model.startswith(prefix)), "")
    return model.removeprefix(prefix)
