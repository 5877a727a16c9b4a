"""Scores: checklists, reward versions, scores, verdicts; and the incidents that `cm2 doctor` reports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "checklists",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("sources", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_checklists"),
        sa.UniqueConstraint("hash", name="uq_checklists_hash"),
        sa.UniqueConstraint("name", "version", name="uq_checklists_name_version"),
    )
    op.create_table(
        "incidents",
        sa.Column("kind", KEY, nullable=False),
        sa.Column("count", BIG, nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("first", BIG, nullable=False),
        sa.Column("last", BIG, nullable=False),
        sa.PrimaryKeyConstraint("kind", name="pk_incidents"),
    )
    op.create_table(
        "reward_versions",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("version", KEY, nullable=False),
        sa.Column("settings", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_reward_versions"),
        sa.UniqueConstraint("version", name="uq_reward_versions_version"),
    )
    op.create_table(
        "reward_checklists",
        sa.Column("checklist", sa.Text(), nullable=False),
        sa.Column("reward", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["reward"], ["reward_versions.seq"], name="fk_reward_checklists_reward_reward_versions"
        ),
        sa.PrimaryKeyConstraint("checklist", "reward", name="pk_reward_checklists"),
    )
    op.create_table(
        "scores",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("trace", BIG, nullable=False),
        sa.Column("reward", BIG, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("null_reason", sa.Text(), nullable=True),
        sa.Column("checklist", sa.Text(), nullable=True),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("turns", sa.Text(), nullable=False),
        sa.Column("components", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["reward"], ["reward_versions.seq"], name="fk_scores_reward_reward_versions"),
        sa.ForeignKeyConstraint(["trace"], ["traces.seq"], name="fk_scores_trace_traces"),
        sa.PrimaryKeyConstraint("seq", name="pk_scores"),
        sa.UniqueConstraint("trace", "reward", name="uq_scores_trace_reward"),
    )
    op.create_table(
        "verdicts",
        sa.Column("score", BIG, nullable=False),
        sa.Column("block", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=True),
        sa.Column("item", KEY, nullable=False),
        sa.Column("value", sa.Boolean(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("paid", sa.Boolean(), nullable=True),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.Column("depends_on", sa.Text(), nullable=False),
        sa.Column("explanation", sa.Text(), nullable=True),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["score"], ["scores.seq"], name="fk_verdicts_score_scores"),
        sa.PrimaryKeyConstraint("score", "block", "position", name="pk_verdicts"),
    )
    op.create_index("ix_verdicts_item", "verdicts", ["item"], unique=False)
