"""The table of what was sent to other tools."""

from __future__ import annotations

from sqlalchemy import Column, Table, Text

from cm2_agent.store.columns import big, key, metadata, project_column

sent = Table(
    "sent",
    metadata,
    project_column(primary_key=True),
    Column("receiver", key(), primary_key=True, doc="the tool and its address"),
    Column("trace", key(), primary_key=True, doc="its id"),
    Column("digest", Text, nullable=False, doc="SHA-256 of all that was sent of the trace"),
    Column("sent", big(), nullable=False, doc="nanoseconds since the epoch"),
    info={"doc": "The verdicts of one trace that another tool has acknowledged, so that they are sent once."},
)

__all__ = ["sent"]
