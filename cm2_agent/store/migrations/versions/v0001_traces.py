"""Traces: contents, tasks, traces, runs, model calls, tool runs, outcomes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "contents",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_contents"),
    )
    op.create_table(
        "group_keys",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("task", KEY, nullable=False),
        sa.Column("policy", KEY, nullable=True),
        sa.Column("key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_group_keys"),
        sa.UniqueConstraint("hash", name="uq_group_keys_hash"),
    )
    op.create_index("ix_group_keys_policy_task", "group_keys", ["policy", "task"], unique=False)
    op.create_index("ix_group_keys_task", "group_keys", ["task"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("id", KEY, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_tasks"),
        sa.UniqueConstraint("id", "version", name="uq_tasks_id_version"),
    )
    op.create_table(
        "traces",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("id", KEY, nullable=False),
        sa.Column("started", BIG, nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("task", KEY, nullable=True),
        sa.Column("policy", KEY, nullable=True),
        sa.Column("group_key", BIG, nullable=True),
        sa.Column("rollout", BIG, nullable=True),
        sa.ForeignKeyConstraint(["group_key"], ["group_keys.seq"], name="fk_traces_group_key_group_keys"),
        sa.PrimaryKeyConstraint("seq", name="pk_traces"),
        sa.UniqueConstraint("id", name="uq_traces_id"),
    )
    op.create_index("ix_traces_fetch", "traces", ["group_key", "rollout", "started", "id", "seq"], unique=False)
    op.create_index("ix_traces_policy", "traces", ["policy"], unique=False)
    op.create_index("ix_traces_started_id", "traces", ["started", "id"], unique=False)
    op.create_index("ix_traces_task", "traces", ["task"], unique=False)
    op.create_table(
        "outcomes",
        sa.Column("trace", BIG, nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["trace"], ["traces.seq"], name="fk_outcomes_trace_traces"),
        sa.PrimaryKeyConstraint("trace", "name", name="pk_outcomes"),
    )
    op.create_table(
        "runs",
        sa.Column("seq", BIG, autoincrement=True, nullable=False),
        sa.Column("id", KEY, nullable=False),
        sa.Column("trace", BIG, nullable=False),
        sa.Column("threaded", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("failure_kind", sa.Text(), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("started", BIG, nullable=False),
        sa.Column("ended", BIG, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("messages", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["trace"], ["traces.seq"], name="fk_runs_trace_traces"),
        sa.PrimaryKeyConstraint("seq", name="pk_runs"),
        sa.UniqueConstraint("id", name="uq_runs_id"),
    )
    op.create_index("ix_runs_trace", "runs", ["trace"], unique=False)
    op.create_table(
        "model_calls",
        sa.Column("run", BIG, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("span_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("message", sa.Integer(), nullable=True),
        sa.Column("started", BIG, nullable=False),
        sa.Column("ended", BIG, nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("untrainable", sa.Text(), nullable=True),
        sa.Column("sampling", sa.Text(), nullable=False),
        sa.Column("usage", sa.Text(), nullable=False),
        sa.Column("toolset", sa.LargeBinary(), nullable=True),
        sa.Column("output", sa.LargeBinary(), nullable=True),
        sa.Column("base_run", BIG, nullable=True),
        sa.Column("base_position", sa.Integer(), nullable=True),
        sa.Column("shared_input", sa.Integer(), nullable=False),
        sa.Column("shared_ids", sa.Integer(), nullable=False),
        sa.Column("input", sa.LargeBinary(), nullable=False),
        sa.Column("prompt_ids", sa.LargeBinary(), nullable=True),
        sa.Column("completion_ids", sa.LargeBinary(), nullable=True),
        sa.Column("logprobs", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.seq"], name="fk_model_calls_run_runs"),
        sa.PrimaryKeyConstraint("run", "position", name="pk_model_calls"),
    )
    op.create_table(
        "tool_runs",
        sa.Column("run", BIG, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("span_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=True),
        sa.Column("backend", sa.Text(), nullable=True),
        sa.Column("started", BIG, nullable=False),
        sa.Column("ended", BIG, nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.seq"], name="fk_tool_runs_run_runs"),
        sa.PrimaryKeyConstraint("run", "position", name="pk_tool_runs"),
    )
