"""Certificates of reward versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "certificates",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("project", KEY, nullable=False, server_default="default"),
        sa.Column("reward", KEY, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("stored", BIG, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_certificates"),
    )
    op.create_index("ix_certificates_project_reward", "certificates", ["project", "reward"])
