"""What rows need not say twice: packed contents, results that the dialogue holds, answers by their place in it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    with op.batch_alter_table("contents") as table:
        table.alter_column("body", existing_type=sa.Text(), nullable=True)
        table.add_column(sa.Column("packed", sa.LargeBinary(), nullable=True))
    with op.batch_alter_table("tool_runs") as table:
        table.alter_column("result", existing_type=sa.Text(), nullable=True)
    calls = sa.table("model_calls", sa.column("message", sa.Integer()), sa.column("output", sa.LargeBinary()))
    none = calls.c.output.is_(None) & calls.c.message.is_not(None)  # NULL means from now on: the message itself
    op.execute(calls.update().where(none).values(output=sa.bindparam("none", b"", sa.LargeBinary())))
