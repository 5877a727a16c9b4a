"""JSON as models write it: trailing commas, single or curly quotes, Python's None, bare words; one value, one reading.

What could be read in two ways is no JSON here either: a quote within a string of such quotes, a key that is there twice
with different values."""

from __future__ import annotations

import json
import re

from cm2_agent.models.strict_json import strict_decoder
from cm2_agent.types.json_values import JSON

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<mark>[{}\[\],:])"
    r'|(?P<plain>"(?:[^"\\]|\\.)*")'
    r"|(?P<single>'(?:[^'\\]|\\.)*')"
    r"|(?P<curly>[“„](?:[^“”\\]|\\.)*[”“])"
    r"|(?P<word>[^\s{}\[\],:\"'“”„]+)",
    re.DOTALL,
)
_WORDS = {"None": "null", "True": "true", "False": "false", "undefined": "null"}
_BEGINS = frozenset(",:{[")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
DECODER = strict_decoder(line_breaks=True, repeats=True)
"""Strict but for line breaks within strings."""


def relaxed_json(text: str, start: int) -> tuple[JSON, int]:
    """The object or list that begins at `start`, and where it ends. Raises ValueError where it is none, or may be read
    in two ways.

    >>> relaxed_json("{'verdict': 'yes', 'evidence': None,}", 0)
    ({'verdict': 'yes', 'evidence': None}, 37)
    >>> relaxed_json('{"verdict": yes}', 0)[0]
    {'verdict': 'yes'}
    """
    out: list[str] = []
    depth, position, last = 0, start, ""
    while True:
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError("no JSON, however written")
        position = found.end()
        kind, piece = str(found.lastgroup), found[0]
        if kind == "space":
            continue
        if kind == "mark":
            if piece in "}]" and last == ",":
                out.pop()  # a trailing comma
            depth += (piece in "{[") - (piece in "}]")
            out.append(piece)
            last = piece
        else:
            if last not in _BEGINS:
                raise ValueError("two values without a comma: a quote may stand within a string")
            out.append(_value(kind, piece))
            last = "value"
        if depth == 0:
            return DECODER.decode("".join(out)), position


def _value(kind: str, token: str) -> str:
    if kind == "plain":
        return token
    if kind == "word":
        if token in ("true", "false", "null") or _NUMBER.fullmatch(token):
            return token
        if not re.fullmatch(r"[^\W\d]\w*", token) or token in ("NaN", "Infinity"):
            raise ValueError(f"{token[:40]!r} is no JSON value")
        return _WORDS.get(token) or json.dumps(token)
    inner = re.sub(r"\\(['“”„])", r"\1", token[1:-1])
    return '"' + re.sub(r'(\\.)|(")', lambda part: part[1] or '\\"', inner, flags=re.DOTALL) + '"'


__all__ = ["DECODER", "relaxed_json"]
