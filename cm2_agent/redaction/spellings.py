"""A text in its plain spelling: full-width and other Unicode forms, invisible characters, percent-encoding, character
references, and `(at)`, each with the place where it stood."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote

_ENCODED = re.compile(
    r"(?:%[0-9A-Fa-f]{2})+|&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});|\\u[0-9A-Fa-f]{4}"
    r"|[ ]?[\[({][ ]?(?:[aA][tT]|[dD][oO][tT])[ ]?[\])}][ ]?|(?<=[0-9])\+(?=[0-9])"
)
_HINT = re.compile(r"%[0-9A-Fa-f]{2}|&[#A-Za-z]|\\u[0-9A-Fa-f]{4}|[\[({][ ]?(?:[aA][tT]|[dD][oO][tT])[ ]?[\])}]")
_PERCENT = re.compile("%[0-9A-Fa-f]{2}")
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_ROUNDS = 3
"""How often what was encoded twice is looked at again."""


@dataclass(frozen=True, slots=True)
class PlainText:
    """`text`, and for each of its characters where what it was made of begins and ends in the original."""

    text: str
    starts: list[int]
    ends: list[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original that became this one."""
        return self.starts[start], self.ends[end - 1]


def plain_text(text: str) -> PlainText | None:
    """The text in its plain spelling; None where it is spelled plainly already.

    >>> plain_text("ada%40x.org").text, plain_text("\\uff11\\uff12 ada\\u200b@x.org").text
    ('ada@x.org', '12 ada@x.org')
    """
    found: PlainText | None = None
    for _ in range(_ROUNDS):
        current = text if found is None else found.text
        pieces = _decoded(current)
        if pieces is None:
            break
        found = _joined(pieces, found)
    return found


def _decoded(text: str) -> list[tuple[str, int, int]] | None:
    """The pieces of the text, each with its place: as many characters as places, or what one piece has become."""
    odd = not text.isascii() and text.translate(_CHARACTERS) != text
    if not odd and _HINT.search(text) is None:
        return None
    pieces: list[tuple[str, int, int]] = []
    at, form = 0, _PERCENT.search(text) is not None
    for match in _ENCODED.finditer(text):
        new = _meaning(match[0], match.start()) if form or match[0] != "+" else []
        if new:
            pieces += [*_characters(text, at, match.start(), odd), *new]
            at = match.end()
    if not at and not odd:
        return None
    return [*pieces, *_characters(text, at, len(text), odd)]


def _characters(text: str, start: int, end: int, odd: bool) -> list[tuple[str, int, int]]:
    if not odd:
        return [(text[start:end], start, end)]
    return [(_CHARACTERS[ord(text[at])], at, at + 1) for at in range(start, end)]


def _meaning(encoded: str, at: int) -> list[tuple[str, int, int]]:
    """What a piece means; nothing where it means itself."""
    if encoded[0] == "%":
        return _percent(encoded, at)
    if encoded[0] == "+":  # a space between numbers, where a form is encoded
        return [(" ", at, at + 1)]
    if encoded[0] == "\\":
        new = chr(int(encoded[2:], 16))
        return [(new, at, at + len(encoded))] if new.isprintable() else []
    if encoded[0] == "&":
        new = html.unescape(encoded)
        return [(new, at, at + len(encoded))] if len(new) == 1 else []
    return [("@" if "t" in encoded.lower() and "d" not in encoded.lower() else ".", at, at + len(encoded))]


def _percent(encoded: str, at: int) -> list[tuple[str, int, int]]:
    """The characters of percent-encoded UTF-8, each with its bytes' place; what is none stays."""
    data = bytes.fromhex(encoded.replace("%", ""))
    out: list[tuple[str, int, int]] = []
    index = 0
    while index < len(data):
        length = next((size for size in (1, 2, 3, 4) if _is_utf8(data[index : index + size])), 0)
        begin, end = at + 3 * index, at + 3 * (index + max(length, 1))
        out.append((data[index : index + length].decode() if length else encoded[begin - at : end - at], begin, end))
        index += max(length, 1)
    return out


def _is_utf8(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def _joined(pieces: list[tuple[str, int, int]], before: PlainText | None) -> PlainText:
    starts: list[int] = []
    ends: list[int] = []
    for new, start, end in pieces:
        if len(new) == end - start:
            starts += range(start, end)
            ends += range(start + 1, end + 1)
        else:
            starts += [start] * len(new)
            ends += [end] * len(new)
    if before is not None:
        starts, ends = [before.starts[start] for start in starts], [before.ends[end - 1] for end in ends]
    return PlainText("".join(new for new, _, _ in pieces), starts, ends)


class _Characters(dict[int, str]):
    """Each character's plain form, by its code point; made when first met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        new = self[code] = _plain(char)
        return new


def _plain(char: str) -> str:
    if char.isascii() or "\ud800" <= char <= "\udfff":
        return char
    kind = unicodedata.category(char)
    if kind == "Cf" or _INVISIBLE.match(char) is not None:
        return ""
    if kind == "Nd":
        return str(unicodedata.decimal(char))
    if kind == "Zs":
        return " "
    if kind == "Pd" or char == "\u2212":
        return "-"
    return "." if char in "\u3002\uff0e\uff61" else unicodedata.normalize("NFKC", char)


_CHARACTERS = _Characters()


def as_encoded(placeholder: str, original: str) -> str:
    """The placeholder, percent-encoded where what it replaces was."""
    return quote(placeholder, safe="") if _PERCENT.search(original) else placeholder


__all__ = ["PlainText", "as_encoded", "plain_text"]
