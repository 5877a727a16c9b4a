"""What was sent to other tools."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "sent",
        sa.Column("project", KEY, nullable=False, server_default="default"),
        sa.Column("receiver", KEY, nullable=False),
        sa.Column("trace", KEY, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("sent", BIG, nullable=False),
        sa.PrimaryKeyConstraint("project", "receiver", "trace", name="pk_sent"),
    )
