"""Rows of a file gathered by what they belong to, on disk: a trace's spans may lie anywhere in it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

from cm2_agent.importers.json_records import Found, Problem
from cm2_agent.types.json_values import JSON, json_text


def gathered(
    records: Iterator[Found | Problem], key: Callable[[JSON], str | None], time: Callable[[JSON], int]
) -> Iterator[Found | Problem]:
    """Each group of rows as one record, a list, in the order of the groups' times (0: unknown), then of their first
    rows: exports often begin with the newest. Rows that name no group are problems.

    The rows wait in a temporary database, so that memory holds one group at a time."""
    with closing(sqlite3.connect("")) as waiting:  # a file of its own, which SQLite removes
        waiting.execute(
            "CREATE TABLE rows (name TEXT, place INTEGER, time INTEGER, line INTEGER, number INTEGER, body TEXT,"
            " note TEXT)"
        )
        place = 0
        for record in records:
            if isinstance(record, Problem):
                yield record
                continue
            name = key(record.value)
            if name is None:
                yield Problem(line=record.line, number=record.number, reason="names no trace that it belongs to")
                continue
            place += 1
            began = time(record.value) or None
            row = (name, place, began, record.line, record.number, json_text(record.value), record.note)
            waiting.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        waiting.execute("CREATE INDEX by_name ON rows (name, place)")
        groups = waiting.execute(
            "SELECT name, min(line), min(number), max(note) FROM rows GROUP BY name ORDER BY min(time), min(place)"
        )
        for name, line, number, note in groups:
            bodies = waiting.execute("SELECT body FROM rows WHERE name = ? ORDER BY place", (name,))
            value = [json.loads(body) for (body,) in bodies]
            yield Found(line=line, number=number, value=value, name=f"trace {name}", note=note)


__all__ = ["gathered"]
