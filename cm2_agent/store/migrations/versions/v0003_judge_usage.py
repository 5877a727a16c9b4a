"""What judges used: the usage of a score, and the cache of verdicts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("scores", sa.Column("usage", sa.Text(), nullable=True))
    op.create_table(
        "verdict_cache",
        sa.Column("key", KEY, nullable=False),
        sa.Column("item", KEY, nullable=False),
        sa.Column("value", sa.Boolean(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("stored", BIG, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_verdict_cache"),
    )
