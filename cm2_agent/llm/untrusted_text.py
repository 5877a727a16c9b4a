"""Untrusted text in prompts: lines of JSON in which nothing can end the data, begin an instruction or hide."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from functools import lru_cache

from cm2_agent.types.json_values import JSON

INVISIBLE = (
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffc\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Characters that are drawn as nothing, as part of a regular expression's class: soft hyphens, Unicode's default
ignorables (zero width, direction marks, variation selectors, tags, Hangul fillers), interlinear marks, the blank of
Braille."""
# Besides these: control characters, line breaks, private use and what is no character, and lone surrogates, which UTF-8
# cannot carry.
_UNSEEN = (
    f"{INVISIBLE}\x7f-\x9f\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u2028\u2029\ud800-\uf8ff\ufdd0-\ufdef\ufffe\uffff"
    "\U000110bd\U000110cd\U000e1000-\U0010ffff"
)
# What begins marks and the special tokens of chat templates: <…>, also where a tokenizer folds wide brackets, ◁think▷,
# [INST], [gMASK], [e~[, ]~b].
_HIDDEN = re.compile(f"[<>\uff1c\uff1e\ufe64\ufe65\u25c1\u25b7{_UNSEEN}]")
_BRACKETS = re.compile(r"\[(?=/?[A-Za-z_]*[A-Z]{2}[A-Za-z0-9_]*\])|\[(?=e~\[)|\](?=[~!<]{1,2}[a-z]{1,9}[\[\]])")


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


def escaped(text: str, control: frozenset[str] = frozenset()) -> str:
    """JSON text of one line in which everything can be seen and nothing can begin a mark or a special token; the same
    value. `control` are the special tokens of the model that reads it, besides those of the usual chat templates."""
    if "<" in text or ">" in text or "\x7f" in text or not text.isascii():  # a hundredth of the search's time
        text = _HIDDEN.sub(_escape, text)
    if "[" in text or "]" in text:
        text = _BRACKETS.sub(_escape, text)
    if control:
        pattern = _pattern(control)
        for _ in range(len(max(control, key=len))):  # what is left of one may be another
            before, text = text, pattern.sub(_break, text)
            if text == before:
                break
    return text


def control_tokens(words: Iterable[str]) -> frozenset[str]:
    """Of a tokenizer's special tokens those that `escaped` must break itself: it escapes every `<` anyway, and JSON's
    own marks and escapes cannot be written otherwise."""
    return frozenset(
        word for word in words if word.strip() and not _HIDDEN.search(word) and not set(word) & set('"\\\n')
    )


@lru_cache(maxsize=64)
def _pattern(control: frozenset[str]) -> re.Pattern[str]:
    words = sorted(control, key=lambda word: (-len(word), word))
    return re.compile(r"\\(?:u[0-9a-f]{4}|.)|" + "|".join(map(re.escape, words)))


def _break(found: re.Match[str]) -> str:
    if found[0][0] == "\\":  # an escape, which stays
        return found[0]
    return "".join(f"\\u{unit:04x}" for unit in _units(found[0]))


def _units(word: str) -> list[int]:
    data = word.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[place : place + 2], "big") for place in range(0, len(data), 2)]


def _escape(found: re.Match[str]) -> str:
    """The character as JSON escapes it: outside a string none of these can stand, so the value stays the same."""
    return json.dumps(found[0])[1:-1] if ord(found[0]) > 0x7F else f"\\u{ord(found[0]):04x}"


__all__ = ["INVISIBLE", "control_tokens", "escaped", "fenced", "json_line", "mark_of", "nonce"]
