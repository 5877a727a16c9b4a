"""Work that processes share: claims on rollouts, and the rewards by which workers score."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "claims",
        sa.Column("project", KEY, nullable=False, server_default="default"),
        sa.Column("name", KEY, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("until", BIG, nullable=False),
        sa.PrimaryKeyConstraint("project", "name", name="pk_claims"),
    )
    op.create_table(
        "scoring_queues",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("project", KEY, nullable=False, server_default="default"),
        sa.Column("reward", KEY, nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("budget_usd", sa.Double(), nullable=True),
        sa.Column("budget_calls", BIG, nullable=True),
        sa.Column("rpm", sa.Double(), nullable=True),
        sa.Column("tpm", sa.Double(), nullable=True),
        sa.Column("calls", BIG, nullable=False),
        sa.Column("spent_usd", sa.Double(), nullable=True),
        sa.Column("dearest_usd", sa.Double(), nullable=False),
        sa.Column("next_call", BIG, nullable=False),
        sa.Column("next_token", BIG, nullable=False),
        sa.Column("parked", BIG, nullable=True),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.Column("parks", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_scoring_queues"),
        sa.UniqueConstraint("queue", name="uq_scoring_queues_queue"),
        sa.UniqueConstraint("project", "reward", name="uq_scoring_queues_project_reward"),
    )
