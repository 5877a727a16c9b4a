"""Where a run stands in its conversation: the key of all that had been said, and the ways to a trace's last run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("runs", sa.Column("dialogue", sa.LargeBinary(), nullable=True))
    op.create_index("ix_runs_trace_started", "runs", ["trace", "started"], unique=False)
    op.create_index("ix_runs_project_thread", "runs", ["project", "thread"], unique=False)
    op.create_index("ix_runs_project_dialogue", "runs", ["project", "dialogue"], unique=False)
