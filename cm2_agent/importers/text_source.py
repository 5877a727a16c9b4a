"""A file as text, piece by piece: unpacked where it is packed, decoded by what its first bytes say."""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from cm2_agent.errors import TraceError

PIECE: Final = 1 << 20
"""Bytes that are read at once."""
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PACKED: tuple[tuple[bytes, str], ...] = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))
_REFUSED: tuple[tuple[bytes, str, str], ...] = (
    (b"\x28\xb5\x2f\xfd", "packed by Zstandard", "Unpack it first: zstd -d FILE"),
    (
        b"SQLite format 3\x00",
        "an SQLite database",
        "Name it as a store, with --store, or export its rows as JSON Lines",
    ),
    (b"%PDF-", "a PDF", "Export the dialogues as JSON Lines"),
    (b"ARROW1", "an Arrow file", "Write it as parquet: pyarrow.parquet.write_table(table, FILE)"),
    (b"\x7fELF", "a program", "Name the file that holds the dialogues"),
    (b"\x89PNG", "a picture", "Name the file that holds the dialogues"),
)
_CORRUPT = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


class CutShort(Exception):
    """A packed file that ends too early, or is broken; what came before was read."""


def head_of(path: str | Path, size: int = 64) -> bytes:
    """The file's first bytes as they lie on disk. Raises TraceError where it cannot be opened."""
    try:
        with Path(path).open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise cannot_be_read(path, error) from error


def cannot_be_read(path: str | Path, error: OSError) -> TraceError:
    """What to raise for a file that cannot be opened. Raises the error itself where the disk failed (EIO)."""
    if error.errno == errno.EIO:
        raise error
    return TraceError(f"{path}: cannot be read: {error.strerror or error}. Expected a JSON or JSON Lines file.")


def opened(path: str | Path) -> IO[bytes]:
    """The file's bytes, unpacked. Raises TraceError where it cannot be opened, or is no text."""
    head = head_of(path)
    for mark, what, instead in _REFUSED:
        if head.startswith(mark):
            raise TraceError(f"{path}: is {what}; expected JSON, JSON Lines, CSV or parquet. {instead}")
    how = next((name for mark, name in _PACKED if head.startswith(mark)), None)
    try:
        if how == "gzip":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        if how == "bzip2":
            return bz2.open(path, "rb")
        return lzma.open(path, "rb") if how == "xz" else Path(path).open("rb")
    except OSError as error:
        raise cannot_be_read(path, error) from error


def text_pieces(path: str | Path, encoding: str | None = None) -> Iterator[str]:
    r"""The file's text in pieces of about PIECE characters, each line ending in `\n`, without a byte order mark.

    Bytes that are not of the encoding become lone surrogates (U+DC80 to U+DCFF), so that what they spoil can be named.
    The encoding is that of the byte order mark, else UTF-16 where every other byte is NUL, else UTF-8.

    Raises:
        TraceError: it cannot be opened, is no text, or the encoding is unknown.
        CutShort: a packed file ends too early or is broken, after its last whole piece.
        OSError: the disk failed."""
    with opened(path) as file:
        try:
            first = file.read(PIECE)
        except _CORRUPT as error:
            raise CutShort(f"{type(error).__name__}: {error}") from error
        name, skipped = _encoding(first)
        try:
            decoder = codecs.getincrementaldecoder(encoding or name)(
                "surrogateescape" if encoding is None and name == "utf-8" else "replace"
            )
        except LookupError as error:
            raise TraceError(f"encoding {encoding!r} is unknown; expected one such as latin-1 or utf-16") from error
        lines = io.IncrementalNewlineDecoder(decoder, translate=True)
        piece = first[skipped if encoding is None else 0 :]
        while piece:
            yield lines.decode(piece)
            try:
                piece = file.read(PIECE)
            except _CORRUPT as error:
                yield lines.decode(b"", final=True)
                raise CutShort(f"{type(error).__name__}: {error}") from error
        yield lines.decode(b"", final=True)


def _encoding(head: bytes) -> tuple[str, int]:
    """The encoding that the first bytes speak for, and how many of them are its mark."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    if len(head) >= 4 and head[1] == 0 and head[0]:
        return "utf-16-le", 0
    if len(head) >= 4 and head[0] == 0 and head[1]:
        return "utf-16-be", 0
    return "utf-8", 0


__all__ = ["PIECE", "CutShort", "cannot_be_read", "head_of", "opened", "text_pieces"]
