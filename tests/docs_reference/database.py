"""The page of the database: its tables as SQLAlchemy knows them, and the revisions that lead to them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from sqlalchemy import Column, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql, sqlite

from cm2_agent.store.migrations import versions
from cm2_agent.store.schema import metadata
from tests.docs_reference.markdown import code, escape, table


def database_page() -> str:
    """The page."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    yield "# Database\n"
    yield (
        "The tables of a store, on SQLite and PostgreSQL. `NULL` always means that nobody knows. `seq` is the short "
        "key by which rows refer to each other, and the order of storing; every noun has its natural key as a unique "
        "constraint, so that writing twice changes nothing. Times are nanoseconds since the epoch.\n"
    )
    tables = list(metadata.tables.values())
    yield table(
        ["table", "what a row is"],
        [[f"[{code(one.name)}](#{one.name})", escape(one.info.get("doc", ""))] for one in tables],
    )
    for one in tables:
        yield from _table(one)
    yield "## Revisions\n"
    yield "`cm2 db upgrade` brings an older store to the last of these, in one transaction.\n"
    yield table(["revision", "after", "what it brings"], _revisions())


def _table(one: Table) -> Iterator[str]:
    yield f"## {one.name}\n"
    if one.info.get("doc"):
        yield f"{escape(one.info['doc'])}\n"
    rows = [
        [code(column.name), *_types(column), "yes" if column.nullable else "", _keys(column), escape(column.doc or "")]
        for column in one.columns
    ]
    yield table(["column", "PostgreSQL", "SQLite", "NULL", "key", "meaning"], rows)
    unique = sorted(
        _names(rule) for rule in one.constraints if isinstance(rule, UniqueConstraint) and len(rule.columns) > 1
    )
    indexes = sorted(_names(index) for index in one.indexes)
    if unique:
        yield f"Unique together: {'; '.join(unique)}.\n"
    if indexes:
        yield f"Indexes: {'; '.join(indexes)}.\n"


def _types(column: Column[object]) -> list[str]:
    return [code(column.type.compile(dialect=dialect)) for dialect in (postgresql.dialect(), sqlite.dialect())]  # type: ignore[no-untyped-call]


def _keys(column: Column[object]) -> str:
    table = column.table
    alone = {tuple(rule.columns.keys()) for rule in table.constraints if isinstance(rule, UniqueConstraint)}
    keys = ["primary"] if column.primary_key else []
    keys += ["unique"] if column.unique or (column.name,) in alone else []
    keys += [
        f"→ [{code(key.target_fullname)}](#{key.column.table.name})"
        for key in sorted(column.foreign_keys, key=lambda key: key.target_fullname)
    ]
    return ", ".join(keys)


def _names(rule: object) -> str:
    return ", ".join(code(column.name) for column in rule.columns)  # type: ignore[attr-defined]


def _revisions() -> list[list[str]]:
    rows = []
    for found in sorted(pkgutil.iter_modules(versions.__path__), key=lambda found: found.name):
        module = importlib.import_module(f"{versions.__name__}.{found.name}")
        rows.append(
            [
                code(module.revision),
                code(module.down_revision) if module.down_revision else "",
                escape((module.__doc__ or "").split("\n\n")[0]),
            ]
        )
    return rows
