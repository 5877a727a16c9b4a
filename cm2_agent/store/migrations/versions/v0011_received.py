"""Spans that a collector received, and the tokens of those who may send them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "received",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("project", KEY, nullable=False, server_default="default"),
        sa.Column("trace", KEY, nullable=False),
        sa.Column("batch", BIG, nullable=False),
        sa.Column("stored", BIG, nullable=False),
        sa.Column("built", sa.Boolean(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_received"),
    )
    op.create_index("ix_received_project_trace", "received", ["project", "trace"])
    op.create_index("ix_received_built_stored", "received", ["built", "stored"])
    op.create_table(
        "access_tokens",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("project", KEY, nullable=False, server_default="default"),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created", BIG, nullable=False),
        sa.Column("revoked", BIG, nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_access_tokens"),
        sa.UniqueConstraint("hash", name="uq_access_tokens_hash"),
    )
