"""How values are stored in a column: JSON text, token blobs, content addresses.

JSON is stored as readable text; contents, where that is smaller, as DEFLATE (`pack_text`). Text that a database
refuses (NUL, lone surrogates) is stored as `b64:` and the base64 of its UTF-8 (surrogates passed), so that nothing is
lost and nothing else becomes unreadable. Token ids are int32, or fewer bytes each where the largest fits (`narrowed`),
log probabilities float32, all little-endian whatever the machine."""

from __future__ import annotations

import base64
import json
import sys
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from cm2_agent.errors import StoreError
from cm2_agent.types.json_values import JSON, canonical_json, content_digest, json_text
from cm2_agent.types.packed import Packed

SEALED = "b64:"
DIGEST = 32
"""Bytes of a content address: SHA-256."""

N = TypeVar("N", int, float)

_WORDS = (
    b' the and that this with from have not you your for are was will can please thank sorry "false,"true,"null,"url":'
    b'"https://"date":"20"status":"id":"name":"type":"value":"error":"result":[{"items":"query":"message":"}],'
    b'{"role":"system","parts":[{"type":"text","content":"You are {"role":"user","parts":[{"type":"text","content":"I '
    b'{"role":"assistant","parts":[{"type":"reasoning","content":"{"type":"tool_call","id":"call_","name":"get_",'
    b'"arguments":{"}}],"finish_reason":"stop"}"finish_reason":"tool_calls"}{"role":"assistant","parts":[{"type":"text'
    b'","content":"{"role":"tool","parts":[{"type":"tool_call_response","id":"call_","response":""}]}'
)
"""What a message's JSON is made of: DEFLATE's dictionary of the packing with the number below. It never changes."""
_PACKING = b"\x01"
_RAW = -15  # zlib's window bits for a stream without header and checksum
_PLAIN = 96
"""Bytes of text that are not worth packing."""

_SWAP = sys.byteorder == "big"


def seal(text: str) -> str:
    """The text as a database takes it."""
    if "\0" not in text and not text.startswith(SEALED):
        if text.isascii():
            return text
        try:
            text.encode()
        except UnicodeEncodeError:
            pass
        else:
            return text
    return SEALED + base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def unseal(text: str) -> str:
    """The text as it was given to `seal`."""
    return base64.b64decode(text[len(SEALED) :]).decode("utf-8", "surrogatepass") if text.startswith(SEALED) else text


def sealed(text: str | None) -> str | None:
    return None if text is None else seal(text)


def unsealed(text: str | None) -> str | None:
    return None if text is None else unseal(text)


def dump(value: JSON, what: str) -> str:
    """JSON text for a column, keys in the order given. Raises StoreError where the value is not JSON, naming `what` it
    belongs to."""
    try:
        return seal(json_text(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(what, error) from error


def dump_mapping(value: Mapping[str, JSON], what: str) -> str:
    """The same for a mapping whose order means nothing: keys sorted, so that equal mappings are equal text."""
    if not value:
        return "{}"
    try:
        return seal(canonical_json(value if type(value) is dict else dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(what, error) from error


def dump_tags(tags: Sequence[str], where: str) -> str:
    """Tags as a JSON list in which every tag is spelled in one way, so that it can be searched for. Raises
    StoreError where one is no text."""
    for tag in tags:
        if not isinstance(tag, str):
            raise StoreError(f"{where}: a tag is {type(tag).__name__} {tag!r:.60}; expected text")
    return f"[{','.join(map(_spelled, tags))}]"


def tag_pattern(tag: str) -> str:
    """A LIKE pattern (escaped by `!`) for a text of `dump_tags` with this tag; `in` on the list has the last word."""
    return like_pattern(_spelled(tag))


def like_pattern(part: str) -> str:
    """A LIKE pattern (escaped by `!`) for texts with this part."""
    for special in "!%_":
        part = part.replace(special, "!" + special)
    return f"%{part}%"


def load_tags(text: str | None) -> tuple[str, ...]:
    """The tags that `dump_tags` was given; none for NULL."""
    return () if text is None else tuple(unseal(tag) for tag in json.loads(text))


def _spelled(tag: str) -> str:
    return json_text(seal(tag))


def load(text: str) -> JSON:
    """The value that `dump` was given."""
    return json.loads(unseal(text))


def pack_text(text: str) -> bytes | None:
    """A text as bytes, a few times smaller; None where that would save little.

    >>> text = '{"role":"user","parts":[{"type":"text","content":"Where is it? And where is the other one, please?"}]}'
    >>> packed = pack_text(text)
    >>> packed is not None and len(packed) < len(text) // 2 and unpack_text(packed) == text
    True
    """
    data = text.encode()
    if len(data) < _PLAIN:
        return None
    made = zlib.compressobj(6, zlib.DEFLATED, _RAW, zdict=_WORDS)
    packed = _PACKING + made.compress(data) + made.flush()
    return packed if len(packed) < len(data) - len(data) // 8 else None


def unpack_text(packed: bytes) -> str:
    """The text that `pack_text` was given. Raises StoreError for bytes that it did not make."""
    try:
        if packed[:1] != _PACKING:
            raise ValueError(f"packing {packed[:1]!r}")
        made = zlib.decompressobj(_RAW, zdict=_WORDS)
        data = made.decompress(packed[1:])
        if not made.eof:
            raise ValueError("it ends early")
        return data.decode()
    except (zlib.error, ValueError) as error:
        raise StoreError(f"a content cannot be unpacked: {error}; restore the database from a copy") from error


def body_of(row: Any) -> str:
    """The text of a row of `contents`, which is stored in one of two columns."""
    return unpack_text(bytes(row.packed)) if row.body is None else str(row.body)


def address(value: JSON, what: str) -> bytes:
    """The content address, as `Message.hash` writes it in hexadecimal. Raises StoreError where the value is not
    JSON."""
    try:
        return content_digest(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(what, error) from error


def pack_ids(ids: Sequence[int] | None) -> bytes | None:
    """int32, little-endian. Raises StoreError where an id does not fit."""
    if ids is None:
        return None
    try:
        return _little(_flat(ids, "i") if isinstance(ids, Packed) else array("i", ids))
    except (OverflowError, TypeError) as error:
        raise StoreError(f"token ids are not 32-bit integers: {error}; expected the ids of a tokenizer") from error


def narrowed(ids: bytes | None) -> bytes | None:
    """What `pack_ids` gave with two or three bytes an id, where the largest fits: how many comes first, and where that
    makes an even length, a byte that says nothing comes last, as int32 alone has an even one.

    >>> narrowed(pack_ids([1, 2])), list(unpack_ids(narrowed(pack_ids([1, 70_000]))))
    (b'\\x02\\x01\\x00\\x02\\x00', [1, 70000])
    """
    if not ids:
        return ids
    numbers = np.frombuffer(ids, "<i4")
    if numbers.min() < 0 or (most := int(numbers.max())) >= 1 << 24:
        return ids
    width = 2 if most < 1 << 16 else 3
    made = bytes([width]) + np.frombuffer(ids, "u1").reshape(-1, 4)[:, :width].tobytes()
    return made if len(made) % 2 else made + b"\0"


def unpack_ids(blob: bytes) -> array[int]:
    """The ids that `pack_ids` was given, narrowed or not."""
    if len(blob) % 2:
        width = blob[0]
        count = (len(blob) - 1) // width
        wide = np.zeros((count, 4), "u1")
        wide[:, :width] = np.frombuffer(blob, "u1", count * width, 1).reshape(count, width)
        blob = wide.tobytes()
    return _filled(array("i"), blob)


def pack_logprobs(logprobs: Sequence[float] | None) -> bytes | None:
    """float32, little-endian: the precision that `ModelCall.logprobs` promises. Raises StoreError where one is not a
    number."""
    if logprobs is None:
        return None
    try:
        return _little(_flat(logprobs, "f") if isinstance(logprobs, Packed) else array("f", logprobs))
    except (OverflowError, TypeError) as error:
        raise StoreError(
            f"logprobs are not numbers: {error}; expected one natural logarithm a sampled token"
        ) from error


def unpack_logprobs(blob: bytes) -> array[float]:
    """The logprobs that `pack_logprobs` was given."""
    return _filled(array("f"), blob)


def split_digests(blob: bytes) -> list[bytes]:
    """The content addresses that were joined into a blob."""
    return [blob[start : start + DIGEST] for start in range(0, len(blob), DIGEST)]


def shared_prefix(left: bytes, right: bytes, unit: int) -> int:
    """How many leading units of `unit` bytes two blobs share, by bisection: comparing slices costs far less than a
    loop.

    >>> shared_prefix(b"aabbcc", b"aabbdd", 2)
    2
    """
    low, high = 0, min(len(left), len(right)) // unit
    if left[: high * unit] == right[: high * unit]:
        return high
    while low < high - 1:  # invariant: `low` units are equal, `high` units are not
        middle = (low + high) // 2
        if left[low * unit : middle * unit] == right[low * unit : middle * unit]:
            low = middle
        else:
            high = middle
    return low


def _not_json(what: str, error: Exception) -> StoreError:
    return StoreError(
        f"{what} is not JSON: {error}; expected text, finite numbers, true, false, null, lists and objects"
    )


def _flat(numbers: Packed[N], code: str) -> array[N]:
    """The numbers as an array, copied as they are where they have this type already."""
    held = numbers.flat(code)
    return array(code, numbers.tolist()) if held is None else held


def _little(values: array[int] | array[float]) -> bytes:
    if _SWAP:
        values.byteswap()
    return values.tobytes()


def _filled(values: array[N], blob: bytes) -> array[N]:
    values.frombytes(blob)
    if _SWAP:
        values.byteswap()
    return values
