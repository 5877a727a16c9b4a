"""The tables of a collector: spans on their way to a run, and the tokens of those who may send them."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, LargeBinary, Table, Text

from cm2_agent.store.columns import big, key, metadata, project_column, seq_column

received = Table(
    "received",
    metadata,
    seq_column(),
    project_column(),
    Column("trace", key(), nullable=False, doc="the spans' trace id, or the conversation of a proxied call"),
    Column("batch", big(), nullable=False, doc="which write of the collector stored it; they grow"),
    Column("stored", big(), nullable=False, doc="nanoseconds since the epoch"),
    Column("built", Boolean, nullable=False, doc="whether a stored run holds these spans"),
    Column("body", LargeBinary, nullable=False, doc="the spans, MessagePack in Zstandard (zlib before 0014)"),
    Index(None, "project", "trace"),
    Index(None, "built", "stored"),
    info={"doc": "Spans of one trace that a collector acknowledged, until their run is stored and a while longer."},
)

access_tokens = Table(
    "access_tokens",
    metadata,
    seq_column(),
    project_column(),
    Column("hash", Text, nullable=False, unique=True, doc="SHA-256 of the token, which is stored nowhere"),
    Column("name", Text, nullable=False, doc="what its owner calls it"),
    Column("scopes", Text, nullable=False, doc="what it allows, separated by spaces: `ingest`, `read`, `label`, …"),
    Column("created", big(), nullable=False, doc="nanoseconds since the epoch"),
    Column("revoked", big(), doc="nanoseconds since the epoch; NULL while it holds"),
    info={"doc": "One bearer token of a project, by its hash."},
)

__all__ = ["access_tokens", "received"]
