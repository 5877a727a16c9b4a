"""Rows of CSV, parquet and JSON Lines files as records: a row a record, or the rows of one dialogue together."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cm2_agent.errors import MissingExtra, TraceError
from cm2_agent.importers.answer_pairs import PAIRS
from cm2_agent.importers.gathered_rows import gathered
from cm2_agent.importers.json_records import Found, Problem, flaw_of, parse_json
from cm2_agent.importers.openai_messages import ROLES
from cm2_agent.importers.recognise import not_read
from cm2_agent.importers.spans_to_traces import nanoseconds, unpacked
from cm2_agent.importers.text_source import CutShort, text_pieces
from cm2_agent.types.json_values import JSON

_DIALOGUE = ("conversation_id", "dialogue_id", "dialog_id", "chat_id", "thread_id", "session_id", "trace_id", "id")
_SAID = ("content", "text", "message", "value", "utterance")
_SPEAKER = ("role", "speaker", "from", "author", "sender")
_PLACES = ("turn", "turn_index", "turn_number", "message_index", "step", "seq", "sequence", "position", "index")
_TIMES = ("timestamp", "created_at", "createdAt", "sent_at", "time", "datetime", "date")
_ANSWERS = ("messages", *("tool_calls", "tool_call_id", "name"), *chain.from_iterable(PAIRS))
_KNOWN = {name.casefold(): name for name in (*_DIALOGUE, *_SAID, *_SPEAKER, *_PLACES, *_TIMES, *_ANSWERS)}
"""Names of columns that mean something here; a table may write them as `Role` or `Conversation ID`."""
_PYTHON = re.compile(r"[\[{\s]+'")
"""How a list or an object begins that Python printed."""
_BATCH = 256
_LOOKED_AT = 20


def csv_records(path: str | Path, encoding: str | None = None) -> Iterator[Found | Problem]:
    """The rows of a CSV or TSV file by the names in its first line. Rows with a role and a text are messages: those of
    one dialogue (by its id; without one, all) are one record, wherever they stand. Raises TraceError."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = _lines(path, encoding)
    head = next(lines, "")
    delimiter = max((",", "\t", ";", "|"), key=head.count)
    rows = csv.reader(_again(head, lines), delimiter=delimiter, strict=True)
    try:
        names = _column_names(next(rows))
    except (StopIteration, csv.Error) as error:
        raise TraceError(f"{path}: has no line with the names of its columns ({error})") from error
    if len(set(names)) < len(names) or not all(names):
        raise TraceError(
            f"{path}: its columns are {names}; expected a first line with a name of its own for each column"
        )
    yield from _as_records(_rows(rows, names))


def _column_names(first: list[str]) -> list[str]:
    names = [name.strip() for name in first]
    known = [_KNOWN.get(name.casefold().replace(" ", "_"), name) for name in names]
    return known if len(set(known)) == len(set(names)) else names


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
        value = {name: _cell(name, cell) for name, cell in zip(names, row, strict=True) if cell != ""}
        flaw = flaw_of(value)
        if flaw is not None:
            yield Problem(line=line, number=number, reason=flaw)
        else:
            yield Found(line=line, number=number, value=value)


def _cell(name: str, cell: str) -> JSON:
    """A cell's text; where it is a JSON list or object, or one as Python prints it (pandas writes such), that. What was
    said stays text, but for a list of parts."""
    if cell[:1] not in ("{", "["):
        return cell
    found: JSON = cell
    try:
        found = parse_json(cell)
    except ValueError:
        if _PYTHON.match(cell):
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # sets, bytes
                found = json.loads(json.dumps(unpacked(cell), allow_nan=False))
    return cell if name in _SAID and not _is_parts(found) else found


def _is_parts(value: JSON) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and ("type" in one or "role" in one) for one in value)
    )


def _as_records(rows: Iterator[Found | Problem]) -> Iterator[Found | Problem]:
    """Rows of a file of messages, those of one dialogue together; rows of any other file as they are."""
    looked = list(islice(rows, _LOOKED_AT))
    if not any(isinstance(row, Found) and _message(row.value) is not None for row in looked):
        yield from chain(looked, rows)
    else:
        yield from _gathered(chain(looked, rows))


def _gathered(rows: Iterator[Found | Problem]) -> Iterator[Found | Problem]:
    for number, group in enumerate(gathered(_messages(rows), _name, lambda value: 0), start=1):
        yield group if isinstance(group, Problem) else _dialogue(group, number)


def json_dialogues(records: Iterator[Found | Problem], known: Callable[[JSON], bool]) -> Iterator[Found | Problem]:
    """Records of JSON whose rows are messages, as those of a table: where the first that can be read is one and of no
    format that is `known`, or holds a list of messages that name several dialogues. Other records as they are."""
    looked: list[Found | Problem] = []
    for record in records:
        looked.append(record)
        if isinstance(record, Found):
            break
    every = chain(looked, records)
    first = looked[-1].value if looked and isinstance(looked[-1], Found) else None
    if _list_in(first) is not None or (isinstance(first, Mapping) and not known(first) and _message(first) is not None):
        yield from _gathered(_each(every))
    else:
        yield from every


def _several(value: JSON) -> bool:
    """Whether it is a list of messages each of which names its dialogue, and not all the same."""
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        return False
    own = _DIALOGUE[:-1]  # an `id` is the message's own in such lists
    names = [next((str(one[key]) for key in own if one.get(key) is not None), None) for one in value]
    return None not in names and len(set(names)) > 1 and any(_message(one) is not None for one in value)


def _list_in(value: JSON) -> tuple[list[JSON], str | None] | None:
    """The messages of several dialogues that a list is, or an object holds, and a note on what else it holds."""
    if isinstance(value, list):
        return (value, None) if _several(value) else None
    if not isinstance(value, Mapping):
        return None
    return next(((one, not_read(key, value)) for key, one in value.items() if _several(one)), None)


def _each(records: Iterator[Found | Problem]) -> Iterator[Found | Problem]:
    for record in records:
        listed = _list_in(record.value) if isinstance(record, Found) else None
        if isinstance(record, Found) and listed is not None:
            yield from (replace(record, value=one, note=listed[1]) for one in listed[0])
        else:
            yield record


def _messages(rows: Iterator[Found | Problem]) -> Iterator[Found | Problem]:
    """Each row as a message with its dialogue and its place there. One with a role that nobody knows is a message too:
    without it the rest would be another dialogue."""
    for row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        message = _message(row.value, any_role=True) if isinstance(row.value, Mapping) else None
        if message is None:
            reason = "holds no message: expected a role and a text, as the other rows of this file have"
            yield Problem(line=row.line, number=row.number, reason=reason)
            continue
        identity = next((row.value[key] for key in _DIALOGUE if key in row.value), None)
        numbers = next((_number(row.value[key]) for key in _PLACES if key in row.value), None)
        times = next((nanoseconds(row.value[key]) or None for key in _TIMES if key in row.value), None)
        yield replace(row, value={"id": identity, "place": numbers, "time": times, "message": message})


def _name(value: JSON) -> str:
    """What the rows of one dialogue share: its id, or that there is none."""
    return "" if value["id"] is None else f"id {value['id']}"


def _dialogue(group: Found, number: int) -> Found:
    """One dialogue of its rows: by their numbers, or their times, where all have them, else as they stand."""
    rows = list(group.value)
    for key in ("place", "time"):
        if all(row[key] is not None for row in rows):
            rows.sort(key=lambda row: row[key])
            break
    named = {} if rows[0]["id"] is None else {"id": rows[0]["id"]}
    value = {**named, "messages": [row["message"] for row in rows]}
    return Found(line=group.line, number=number, value=value, note=group.note)


def _number(cell: JSON) -> float | None:
    try:
        found = float(cell) if isinstance(cell, str | int | float) and not isinstance(cell, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _message(row: Mapping[str, JSON], *, any_role: bool = False) -> dict[str, JSON] | None:
    speaker = next((row[key] for key in _SPEAKER if isinstance(row.get(key), str)), None)
    said = next((row[key] for key in _SAID if key in row), None)
    known = speaker is not None and speaker.casefold() in ROLES
    if not (known or (any_role and (said is not None or "tool_calls" in row))) or "messages" in row:
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
                value = {key: _json(cell, str(key)) for key, cell in row.items() if cell is not None}
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


def _json(value: Any, column: str = "") -> JSON:
    """A cell as JSON. Of a list's structs each has every key, absent ones as null: these are left out."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if value is None or isinstance(value, str | int | float | bool):
        return _cell(column, value) if isinstance(value, str) else value
    return str(value)  # times and decimals


__all__ = ["csv_records", "json_dialogues", "parquet_records"]
