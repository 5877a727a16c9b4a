"""How values are stored in a column: JSON text, token blobs, content addresses.

JSON is stored as readable text. Text that a database refuses (NUL, lone surrogates) is stored as `b64:` and the base64
of its UTF-8 (surrogates passed), so that nothing is lost and nothing else becomes unreadable. Token ids are int32, log
probabilities float32, both little-endian whatever the machine."""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import TypeVar

from cm2_agent.errors import StoreError
from cm2_agent.types.json_values import JSON, canonical_json, content_digest, json_text
from cm2_agent.types.packed import Packed

SEALED = "b64:"
DIGEST = 32
"""Bytes of a content address: SHA-256."""

N = TypeVar("N", int, float)

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


def unpack_ids(blob: bytes) -> array[int]:
    """The ids that `pack_ids` was given."""
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
