"""The records of a file, whatever holds them: JSON, JSON Lines, CSV, parquet, or an archive of Inspect's."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from cm2_agent.errors import TraceError
from cm2_agent.importers.json_records import MOST_CHARACTERS, Found, Problem, flaw_of, read_records
from cm2_agent.importers.recognise import is_known
from cm2_agent.importers.table_rows import csv_records, json_dialogues, parquet_records
from cm2_agent.importers.text_source import CutShort, cannot_be_read, head_of, text_pieces
from cm2_agent.types.json_values import JSON

_PACKED = (".gz", ".bz2", ".xz")
_TABLES = (".csv", ".tsv")


def records_of(path: str | Path, encoding: str | None = None) -> Iterator[Found | Problem]:
    """The records of a file, in order, each read when it is asked for; its first bytes say what it is. Raises
    TraceError where it cannot be opened, holds nothing, or is of no kind that is known; OSError where the disk fails
    meanwhile."""
    head = head_of(path)
    if not head:
        raise TraceError(f"{path}: is empty. Expected a JSON or JSON Lines file with at least one record.")
    if head.startswith(b"PAR1"):
        return parquet_records(path)
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if _is_table(path, encoding):
        return csv_records(path, encoding)
    return json_dialogues(read_records(path, encoding), is_known)


def _is_table(path: str | Path, encoding: str | None) -> bool:
    """Whether a text is a table: by the file's name, or by a first line of names that is no JSON."""
    name = Path(path)
    suffix = Path(name.stem).suffix if name.suffix.casefold() in _PACKED else name.suffix
    try:
        first = next((piece.lstrip() for piece in text_pieces(path, encoding) if piece.strip()), "")
    except CutShort:
        return False
    except OSError as error:
        raise cannot_be_read(path, error) from error
    line = first.partition("\n")[0]
    if suffix.casefold() in _TABLES:
        return bool(line) and line[:1] not in ("{", "[")
    return (
        line[:1].isalpha()
        and any(mark in line for mark in (",", "\t", ";"))
        and not any(mark in line for mark in '{}[]:"')
    )


def _archive(path: str | Path) -> Iterator[Found | Problem]:
    """The samples of an Inspect archive (`.eval`), each with its log's header. Raises TraceError."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise TraceError(f"{path}: is a zip archive that cannot be read ({error}). Pack it again") from error
    names = archive.namelist()
    inside = [name for name in names if name.startswith("samples/") and name.endswith(".json")]
    if not inside or not {"header.json", "_journal/start.json"} & set(names):
        archive.close()
        raise TraceError(
            f"{path}: is a zip archive, and none of Inspect's (header.json, samples/…). Unpack it, and import the files"
            " in it"
        )
    return _samples(path, archive, inside)


def _samples(path: str | Path, archive: zipfile.ZipFile, names: list[str]) -> Iterator[Found | Problem]:
    with archive:
        start = "header.json" if "header.json" in archive.namelist() else "_journal/start.json"
        header = _member(path, archive, start)
        log = header.get("eval", header) if isinstance(header, dict) else None
        for number, name in zip(count(1), names, strict=False):
            try:
                sample = _member(path, archive, name)
            except TraceError as error:
                yield Problem(line=1, number=number, reason=f"{name}: {error}")
                continue
            flaw = flaw_of(sample)
            if flaw is None:
                yield Found(line=1, number=number, value={"eval": log, "sample": sample})
            else:
                yield Problem(line=1, number=number, reason=f"{name}: {flaw}")


def _member(path: str | Path, archive: zipfile.ZipFile, name: str) -> JSON:
    if archive.getinfo(name).file_size > MOST_CHARACTERS:
        raise TraceError(f"is longer than {MOST_CHARACTERS:,} bytes when it is unpacked")
    try:
        return json.loads(archive.read(name))
    except NotImplementedError as error:  # a compression that this Python does not know
        raise TraceError(
            f"{path}: is packed in a way that this Python cannot read ({error}). Type: inspect log convert --to json"
        ) from error
    except (ValueError, RecursionError, zipfile.BadZipFile, EOFError) as error:
        raise TraceError(f"not JSON: {error}") from error


__all__ = ["records_of"]
