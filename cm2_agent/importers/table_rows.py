"""Rows of CSV and parquet files as records: a row a record, or the rows of one dialogue together."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cm2_agent.errors import MissingExtra, TraceError
from cm2_agent.importers.json_records import Found, Problem, flaw_of, parse_json
from cm2_agent.importers.openai_messages import ROLES
from cm2_agent.importers.text_source import CutShort, text_pieces
from cm2_agent.types.json_values import JSON

_DIALOGUE = ("conversation_id", "dialogue_id", "dialog_id", "chat_id", "thread_id", "session_id", "trace_id", "id")
_SAID = ("content", "text", "message", "value", "utterance")
_SPEAKER = ("role", "speaker", "from", "author", "sender")
_BATCH = 256


def csv_records(path: str | Path, encoding: str | None = None) -> Iterator[Found | Problem]:
    """The rows of a CSV or TSV file by the names in its first line. Rows with a role and a text are messages: those of
    one dialogue in a row (by its id; without one, all) are one record. Raises TraceError."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = _lines(path, encoding)
    head = next(lines, "")
    delimiter = max((",", "\t", ";", "|"), key=head.count)
    rows = csv.reader(_again(head, lines), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows)]
    except (StopIteration, csv.Error) as error:
        raise TraceError(f"{path}: has no line with the names of its columns ({error})") from error
    if len(set(names)) < len(names) or not all(names):
        raise TraceError(
            f"{path}: its columns are {names}; expected a first line with a name of its own for each column"
        )
    yield from _as_records(_rows(rows, names))


def _rows(rows: Any, names: list[str]) -> Iterator[Found | Problem]:
    number = 0
    while True:
        line = rows.line_num + 1
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(line=line, number=number, reason=f"not CSV: {error}")
            continue
        except CutShort as cut:
            yield Problem(line=line, number=number, reason=f"the packed file is cut short or broken here ({cut})")
            return
        if not row:
            number -= 1
            continue
        if len(row) != len(names):
            reason = (
                f"has {len(row)} fields; the first line names {len(names)}. A text with a comma or a line break needs"
                " quotes"
            )
            yield Problem(line=line, number=number, reason=reason)
            continue
        value = {name: _cell(cell) for name, cell in zip(names, row, strict=True) if cell != ""}
        flaw = flaw_of(value)
        if flaw is not None:
            yield Problem(line=line, number=number, reason=flaw)
        else:
            yield Found(line=line, number=number, value=value)


def _cell(cell: str) -> JSON:
    """A cell's text; where it is a JSON list or object, that."""
    if cell[:1] in ("{", "["):
        try:
            return parse_json(cell)
        except ValueError:
            return cell
    return cell


def _as_records(rows: Iterator[Found | Problem]) -> Iterator[Found | Problem]:
    """Rows that are messages, together; others as they are."""
    open_id: JSON = None
    first: Found | None = None
    messages: list[JSON] = []
    closed_ids: set[int] = set()
    number = 0

    def closed() -> Iterator[Found | Problem]:
        nonlocal number
        if first is not None:
            number += 1
            if open_id is not None and hash(str(open_id)) in closed_ids:
                reason = (
                    f"dialogue {str(open_id)[:60]!r} goes on here after rows of others: what came first was read as the"
                    " whole. Sort the rows by their dialogue and import into a new store"
                )
                yield Problem(line=first.line, number=number, reason=reason)
                return
            closed_ids.add(hash(str(open_id)))
            named = {} if open_id is None else {"id": open_id}
            yield Found(line=first.line, number=number, value={**named, "messages": list(messages)})

    for row in rows:
        message = _message(row.value) if isinstance(row, Found) else None
        if message is None or isinstance(row, Problem):
            yield from closed()
            first = None
            number += 1
            yield row
            continue
        identity = next((row.value[key] for key in _DIALOGUE if key in row.value), None)
        if first is None or identity != open_id:
            yield from closed()
            first, open_id = row, identity
            messages.clear()
        messages.append(message)
    yield from closed()


def _message(row: Mapping[str, JSON]) -> dict[str, JSON] | None:
    speaker = next((row[key] for key in _SPEAKER if isinstance(row.get(key), str)), None)
    said = next((row[key] for key in _SAID if key in row), None)
    if speaker is None or speaker.casefold() not in ROLES or ("messages" in row):
        return None
    kept = {key: row[key] for key in ("tool_calls", "tool_call_id", "name") if key in row}
    return {"role": speaker, "content": said, **kept}


def _lines(path: str | Path, encoding: str | None) -> Iterator[str]:
    """The file's lines, with their ends; bytes that are not UTF-8 are lone surrogates, which the row's check names."""
    rest = ""
    for piece in text_pieces(path, encoding):
        *whole, rest = re.split(r"(?<=\n)", rest + piece)
        yield from whole
    if rest:
        yield rest


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def parquet_records(path: str | Path) -> Iterator[Found | Problem]:
    """The rows of a parquet file, read in batches. `line` is the row's number. Raises TraceError, MissingExtra."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]  # it ships no types
        import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]  # as above
    except ImportError as error:
        raise MissingExtra("parquet", "Parquet files") from error
    try:
        file = pq.ParquetFile(str(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TraceError(
            f"{path}: is no parquet file that can be read: {str(error).splitlines()[0][:160]}. It may be cut short:"
            " write it again, or export the dialogues as JSON Lines"
        ) from error
    yield from _as_records(_parquet_rows(file, pa))


def _parquet_rows(file: Any, pa: Any) -> Iterator[Found | Problem]:
    number = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH):
            for row in batch.to_pylist():
                number += 1
                value = _json({key: cell for key, cell in row.items() if cell is not None})
                flaw = flaw_of(value)
                if flaw is not None:
                    yield Problem(line=number, number=number, reason=flaw)
                else:
                    yield Found(line=number, number=number, value=value)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Problem(
            line=number + 1,
            number=number + 1,
            reason=f"the parquet file is broken here: {str(error).splitlines()[0][:120]}; the rest cannot be read",
        )


def _json(value: Any) -> JSON:
    """A cell as JSON. Of a list's structs each has every key, absent ones as null: these are left out."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if value is None or isinstance(value, str | int | float | bool):
        return _cell(value) if isinstance(value, str) else value
    return str(value)  # times and decimals


__all__ = ["csv_records", "parquet_records"]
