"""What all tables share: the metadata that they stand in, names of constraints, and the types of columns."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, MetaData, Text
from sqlalchemy.types import TypeEngine

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)
DEFAULT_PROJECT = "default"
"""The project of a store that names none, and of every row that was stored before there were projects."""


def big() -> TypeEngine[int]:
    """64 bits everywhere; on SQLite the name that makes a primary key the row id."""
    return BigInteger().with_variant(Integer, "sqlite")


def key() -> TypeEngine[str]:
    """Text that orders by code point on every database, whatever its locale."""
    return Text().with_variant(Text(collation="C"), "postgresql")


def seq_column() -> Column[int]:
    return Column("seq", big(), primary_key=True, autoincrement=True)


def project_column(*, primary_key: bool = False) -> Column[str]:
    """Projects share a database and nothing else: ids of traces, runs and threads are unique within one."""
    return Column("project", key(), primary_key=primary_key, nullable=False, server_default=DEFAULT_PROJECT)
