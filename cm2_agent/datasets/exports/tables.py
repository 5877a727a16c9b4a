"""Records as a parquet file, written a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cm2_agent.datasets.exports.chat_messages import Entry
from cm2_agent.errors import require_extra
from cm2_agent.types.json_values import JSON

ROWS = 64
"""Rows that are in memory at once: a row group."""


def write_table(path: Path, records: Iterable[Entry]) -> int:
    """Write rows of `records.table_record` and return how many there were. Raises MissingExtra."""
    require_tables()
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]  # it ships no types
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]  # as above

    schema = _schema(pa)
    rows = 0
    with pq.ParquetWriter(str(path), schema, compression="zstd") as writer:
        for batch in _batches(records):
            try:
                table = pa.Table.from_pylist(batch, schema=schema)
            except UnicodeEncodeError:  # half a surrogate pair: `trace` holds it escaped
                table = pa.Table.from_pylist([_whole(row) for row in batch], schema=schema)
            writer.write_table(table)
            rows += len(batch)
    return rows


def require_tables() -> None:
    """Raises MissingExtra where parquet files cannot be written."""
    require_extra("parquet", "Parquet files", "pyarrow")


def _batches(records: Iterable[Entry]) -> Iterator[list[Entry]]:
    coming = iter(records)
    while batch := list(islice(coming, ROWS)):
        yield batch


def _whole(value: JSON) -> Any:
    """The value with a question mark in place of what is no character."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _schema(pa: Any) -> Any:
    text, whole = pa.string(), pa.int64()
    function = pa.struct([("name", text), ("arguments", text)])
    call = pa.struct([("id", text), ("type", text), ("function", function)])
    message = pa.struct(
        [
            *(("role", text), ("name", text), ("content", text), ("reasoning_content", text)),
            *(("tool_call_id", text), ("tool_calls", pa.list_(call))),
        ]
    )
    return pa.schema(
        [
            *(("id", text), ("task_id", text), ("task_version", whole), ("rollout", whole), ("model", text)),
            *(("user", text), ("session_id", text), ("tags", pa.list_(text)), ("metadata", text)),
            *(("started", pa.timestamp("ns", tz="UTC")), ("status", text), ("reward", pa.float64())),
            *(("reward_version", text), ("null_reason", text), ("outcomes", text)),
            *(("messages", pa.list_(message)), ("tools", text), ("trace", text), ("score", text)),
        ]
    )


__all__ = ["require_tables", "write_table"]
