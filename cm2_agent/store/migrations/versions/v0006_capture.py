"""What capture sees of a run beyond its messages; projects; a history of scores; erasures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.drop_index("ix_traces_started_id", "traces")
    op.drop_index("ix_traces_fetch", "traces")
    with op.batch_alter_table("traces") as table:
        table.add_column(_project())
        for name in ("user", "session"):
            table.add_column(sa.Column(name, KEY, nullable=True))
        for name in ("tags", "metadata"):
            table.add_column(sa.Column(name, sa.Text(), nullable=True))
        table.drop_constraint("uq_traces_id", type_="unique")
        table.create_unique_constraint("uq_traces_project_id", ["project", "id"])
    op.create_index("ix_traces_project_started_id", "traces", ["project", "started", "id"], unique=False)
    op.create_index("ix_traces_user", "traces", ["user"], unique=False)
    op.create_index(
        "ix_traces_fetch", "traces", ["group_key", "rollout", "started", "id", "seq", "project"], unique=False
    )
    with op.batch_alter_table("runs") as table:
        table.add_column(_project())
        table.add_column(sa.Column("thread", KEY, nullable=True))
        table.add_column(sa.Column("history", sa.LargeBinary(), nullable=True))
        table.add_column(sa.Column("branch_parent", KEY, nullable=True))
        table.add_column(sa.Column("branch_messages", sa.Integer(), nullable=True))
        for name in ("user", "session"):
            table.add_column(sa.Column(name, KEY, nullable=True))
        for name in ("input", "output", "branch_reason", "states", "tags"):
            table.add_column(sa.Column(name, sa.Text(), nullable=True))
        table.drop_constraint("uq_runs_id", type_="unique")
        table.create_unique_constraint("uq_runs_project_id", ["project", "id"])
    op.add_column("model_calls", sa.Column("agent", sa.Text(), nullable=True))
    op.add_column("model_calls", sa.Column("changed", sa.Text(), nullable=True))
    op.add_column("tool_runs", sa.Column("agent", sa.Text(), nullable=True))
    op.add_column("tool_runs", sa.Column("artifact", sa.Text(), nullable=True))
    with op.batch_alter_table("scores") as table:
        table.add_column(sa.Column("stored", BIG, nullable=True))
        table.drop_constraint("uq_scores_trace_reward", type_="unique")
        table.create_unique_constraint("uq_scores_trace_reward_runs", ["trace", "reward", "runs"])
    for name, key in (
        ("labels", ["trace", "item", "turn", "rater"]),
        ("checkpoints", ["thread", "namespace"]),
        ("checkpoint_writes", ["thread", "namespace", "checkpoint", "task", "position"]),
    ):
        with op.batch_alter_table(name) as table:
            table.add_column(_project())
            table.drop_constraint(f"pk_{name}", type_="primary")
            table.create_primary_key(f"pk_{name}", ["project", *key])
    op.create_table(
        "erasures",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("erased", BIG, nullable=False),
        sa.Column("removed", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_erasures"),
    )


def _project() -> sa.Column[str]:
    return sa.Column("project", KEY, nullable=False, server_default="default")
