"""Human labels on items of traces, by rater."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "labels",
        sa.Column("trace", KEY, nullable=False),
        sa.Column("item", KEY, nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("rater", KEY, nullable=False),
        sa.Column("value", sa.Boolean(), nullable=True),
        sa.Column("task", KEY, nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("trace", "item", "turn", "rater", name="pk_labels"),
    )
