"""Simulations: injected faults, the cache of simulated answers, and checkpoints of dialogues under way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("tool_runs", sa.Column("fault", sa.Text(), nullable=True))
    op.create_table(
        "simulations",
        sa.Column("key", KEY, nullable=False),
        sa.Column("tool", KEY, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("stored", BIG, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_simulations"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("thread", KEY, nullable=False),
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("checkpoint", KEY, nullable=False),
        sa.Column("parent", KEY, nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("stored", BIG, nullable=False),
        sa.PrimaryKeyConstraint("thread", "namespace", name="pk_checkpoints"),
    )
    op.create_table(
        "checkpoint_writes",
        sa.Column("thread", KEY, nullable=False),
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("checkpoint", KEY, nullable=False),
        sa.Column("task", KEY, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("thread", "namespace", "checkpoint", "task", "position", name="pk_checkpoint_writes"),
    )
