"""The text of what a tool answered, whatever its form."""

from __future__ import annotations

from cm2_agent.types.json_values import JSON

__all__ = ["content_text"]


def content_text(value: JSON) -> JSON:
    """The text of a list of content blocks, as MCP servers answer (`[{"type": "text", "text": …}, …]`): its texts, one
    a line; every other value as it is, a list of pictures alone too.

    >>> content_text([{"type": "text", "text": "Order A7"}, {"type": "text", "text": "is late"}])
    'Order A7\\nis late'
    """
    if not isinstance(value, list) or not any(map(_is_text, value)):
        return value
    if not all(isinstance(block, str) or (isinstance(block, dict) and "type" in block) for block in value):
        return value
    return "\n".join(block if isinstance(block, str) else block["text"] for block in value if _is_text(block, str))


def _is_text(block: JSON, *bare: type) -> bool:
    if isinstance(block, dict):
        return block.get("type") == "text" and isinstance(block.get("text"), str)
    return isinstance(block, bare)
