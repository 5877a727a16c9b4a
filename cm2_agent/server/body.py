"""The body of a request, decompressed within bounds: a gzip bomb is refused before it is unpacked."""

from __future__ import annotations

import zlib

__all__ = ["BodyTooLarge", "MalformedBody", "unpack"]

_GZIP = 31  # zlib's window bits for a gzip header


class BodyTooLarge(ValueError):
    """The body is larger than the collector takes."""


class MalformedBody(ValueError):
    """The body is not what its headers say."""


def unpack(body: bytes, encoding: str | None, most: int) -> bytes:
    """The body as it was before its `Content-Encoding`: at most `most` bytes.

    Raises BodyTooLarge; MalformedBody for what is no gzip, ends early, or is encoded in another way.

    >>> import gzip
    >>> unpack(gzip.compress(b"spans"), "gzip", 100), unpack(b"spans", None, 100)
    (b'spans', b'spans')
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        if len(body) > most:
            raise BodyTooLarge(f"the body is larger than {most} bytes")
        return body
    if name not in ("gzip", "x-gzip"):
        raise MalformedBody(f"Content-Encoding {name[:40]!r}; expected gzip, or none")
    pieces: list[bytes] = []
    size = 0
    rest = body
    try:
        while rest:  # a gzip file may have several members
            member = zlib.decompressobj(_GZIP)
            piece = member.decompress(rest, most + 1 - size)
            size += len(piece)
            if size > most or member.unconsumed_tail:
                raise BodyTooLarge(f"the body is larger than {most} bytes when decompressed")
            if not member.eof:
                raise MalformedBody("the gzip body ends early")
            pieces.append(piece)
            rest = member.unused_data
    except zlib.error as error:
        raise MalformedBody(f"the body is no gzip: {error}") from error
    return b"".join(pieces)
