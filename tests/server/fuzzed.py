"""Export requests that are broken in every way that came to mind."""

from __future__ import annotations

import gzip
import json
import random
import struct

from tests.server.exported import as_json, dialogue, protobuf

_SPANS = dialogue("fuzz", calls=3, tokens=True)
_BINARY = protobuf(_SPANS)
_TEXT = as_json(_SPANS)
_KINDS = ("application/x-protobuf", "application/json", "application/json; charset=utf-8", "text/plain", "")
_ENCODINGS = ("gzip", "identity", "deflate", "br", "x-gzip", "gzip, gzip")


def fuzzed(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    """A body and its headers."""
    make = draw.choice((_cut, _flipped, _grown, _noise, _bomb, _nested_json, _nested_protobuf, _wrong_types, _members))
    body, headers = make(draw)
    if draw.random() < 0.1:
        headers["Content-Type"] = draw.choice(_KINDS)
    if draw.random() < 0.1:
        headers["Content-Encoding"] = draw.choice(_ENCODINGS)
    return body, headers


def _either(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    kind = draw.choice(_KINDS[:2])
    return (_BINARY if kind == _KINDS[0] else _TEXT), {"Content-Type": kind}


def _cut(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    body, headers = _either(draw)
    if draw.random() < 0.5:
        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    return body[: draw.randrange(len(body))], headers


def _flipped(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    whole, headers = _either(draw)
    body = bytearray(whole)
    for _ in range(draw.randint(1, 30)):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return bytes(body), headers


def _grown(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    body, headers = _either(draw)
    at = draw.randrange(len(body))
    return body[:at] + draw.randbytes(draw.randint(1, 200)) + body[at:], headers


def _noise(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    return draw.randbytes(draw.randint(0, 2000)), _either(draw)[1]


def _bomb(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    return gzip.compress(b"\0" * draw.randint(1, 3_000_000), 9), {**_either(draw)[1], "Content-Encoding": "gzip"}


def _members(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    body, headers = _either(draw)
    at = draw.randrange(len(body))
    joined = gzip.compress(body[:at]) + gzip.compress(body[at:]) + draw.randbytes(draw.randint(0, 2))
    return joined, {**headers, "Content-Encoding": "gzip"}


def _nested_json(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    depth = draw.choice((10, 40, 200, 900, 5_000, 100_000))
    value = '{"arrayValue":{"values":[' * depth + '{"intValue":"1"}' + "]}}" * depth
    pair = f'{{"key":"gen_ai.input.messages","value":{value}}}'
    span = json.dumps({"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "x"})[:-1] + f',"attributes":[{pair}]}}'
    return f'{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{span}]}}]}}]}}'.encode(), {"Content-Type": _KINDS[1]}


def _field(number: int, content: bytes) -> bytes:
    size, out = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(out) + bytes([size]) + content


def _nested_protobuf(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    value = _field(1, b"x")
    for _ in range(draw.choice((5, 30, 90, 300, 2_000))):
        value = _field(5, _field(1, value))
    span = _field(1, b"\1" * 16) + _field(2, b"\2" * 8) + _field(9, _field(1, b"k") + _field(2, value))
    span += b"\x39" + struct.pack("<Q", draw.getrandbits(64))
    return _field(1, _field(2, _field(2, span))), {"Content-Type": _KINDS[0]}


def _wrong_types(draw: random.Random) -> tuple[bytes, dict[str, str]]:
    odd: tuple[object, ...] = (None, 7, -1, 1e400, "x", [], {}, [[]], True, 2**70, "9" * 400, "\ud800", float("nan"))
    request = json.loads(_TEXT)
    for _ in range(draw.randint(1, 4)):
        _spoil(request, draw, odd)
    return json.dumps(request).encode("utf-8", "surrogatepass"), {"Content-Type": _KINDS[1]}


def _spoil(value: object, draw: random.Random, odd: tuple[object, ...]) -> None:
    while isinstance(value, dict | list) and value:
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if draw.random() < 0.25:
            value[key] = draw.choice(odd)
            return
        value = value[key]
