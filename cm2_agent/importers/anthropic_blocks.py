"""Messages of Anthropic's content blocks, with the answers of its own tools as messages of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cm2_agent.types.json_values import JSON

_CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_KINDS: Final = _CALLS | {"tool_result", "thinking", "redacted_thinking"}


def is_anthropic(message: Mapping[str, JSON]) -> bool:
    """Whether it is a message with blocks of calls, results or thinking."""
    return "role" in message and any(_kind(block) in _KINDS or _is_own_result(block) for block in _blocks(message))


def anthropic_to_chat(messages: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    """The messages, those of the assistant cut where a tool of the provider's answered (`web_search_tool_result`,
    `mcp_tool_result` and others): what follows was written with the answer known."""
    found: list[JSON] = []
    for message in messages:
        if message.get("role") != "assistant" or not any(map(_is_own_result, _blocks(message))):
            found.append(message)
            continue
        said: list[JSON] = []
        results: list[JSON] = []
        for block in _blocks(message):
            if _is_own_result(block):
                results.append(_result(block))
                continue
            if results:
                found += [*_step(message, said), {"role": "tool", "content": results}]
                said, results = [], []
            said.append(block)
        found += [*_step(message, said), *([{"role": "tool", "content": results}] if results else [])]
    return found


def _step(message: Mapping[str, JSON], blocks: list[JSON]) -> list[JSON]:
    return [{**message, "content": blocks}] if blocks else []


def _result(block: Mapping[str, JSON]) -> dict[str, JSON]:
    content = block.get("content")
    failed = block.get("is_error") is True or (
        isinstance(content, Mapping) and str(content.get("type")).endswith("_tool_result_error")
    )
    return {"type": "tool_result", "tool_use_id": block.get("tool_use_id"), "content": content, "is_error": failed}


def _is_own_result(block: JSON) -> bool:
    kind = _kind(block)
    return kind.endswith("_tool_result")


def _kind(block: JSON) -> str:
    return str(block.get("type")) if isinstance(block, Mapping) else ""


def _blocks(message: Mapping[str, JSON]) -> list[JSON]:
    content = message.get("content")
    return content if isinstance(content, list) else []


__all__ = ["anthropic_to_chat", "is_anthropic"]
