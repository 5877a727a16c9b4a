"""Policies with their lineage, and their promotions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "policies",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("project", KEY, nullable=False, server_default="default"),
        sa.Column("name", KEY, nullable=False),
        sa.Column("version", KEY, nullable=False),
        sa.Column("parent", KEY),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text()),
        sa.Column("reward", KEY),
        sa.Column("certificate", sa.Text()),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("stored", BIG, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_policies"),
        sa.UniqueConstraint("project", "name", "version", name="uq_policies_project_name_version"),
    )
    op.create_index(
        "uq_policies_promoted",
        "policies",
        ["project", "name"],
        unique=True,
        sqlite_where=sa.text("state = 'promoted'"),
        postgresql_where=sa.text("state = 'promoted'"),
    )
    op.create_table(
        "promotions",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("policy", BIG, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("promoted", BIG, nullable=False),
        sa.Column("undone", BIG),
        sa.PrimaryKeyConstraint("seq", name="pk_promotions"),
        sa.ForeignKeyConstraint(["policy"], ["policies.seq"], name="fk_promotions_policy_policies"),
    )
    op.create_index("ix_promotions_policy", "promotions", ["policy"])
