"""Untrusted text in prompts: lines of JSON in which nothing can end the data or begin an instruction."""

from __future__ import annotations

import hashlib
import json
import re
import secrets

from cm2_agent.types.json_values import JSON

# Angle brackets begin marks and special tokens; the rest is what a reader does not see: line breaks, zero-width,
# direction and tag characters, and lone surrogates, which UTF-8 cannot carry.
_HIDDEN = re.compile(
    "[<>\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def nonce() -> str:
    """Sixteen hexadecimal digits that no transcript can know."""
    return secrets.token_hex(8)


def mark_of(text: str) -> str:
    """Thirty-two hexadecimal digits that the text cannot hold, being its hash: a nonce for prompts that must be the
    same each time."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def fenced(label: str, value: JSON, mark: str) -> str:
    """The value as one line of JSON between two marks that carry the nonce. Nothing of the value can end its own
    fence."""
    return f"<{label} {mark}>\n{json_line(value)}\n</{label} {mark}>"


def json_line(value: JSON) -> str:
    """The value as one line of JSON in which everything can be seen."""
    return escaped(json.dumps(value, ensure_ascii=False))


def escaped(text: str) -> str:
    """JSON text of one line in which everything can be seen and nothing can begin a mark or a special token; the same
    value."""
    return _HIDDEN.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    """The character as JSON escapes it: outside a string none of these can stand, so the value stays the same."""
    return json.dumps(found[0])[1:-1] if ord(found[0]) > 0x7F else f"\\u{ord(found[0]):04x}"


__all__ = ["escaped", "fenced", "json_line", "mark_of", "nonce"]
