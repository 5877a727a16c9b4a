"""The bounds of a reward over its NULLs, and payments in fractions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    for name in ("lower", "upper"):
        op.add_column("scores", sa.Column(name, sa.Double(), nullable=True))
    op.add_column("verdicts", sa.Column("payment", sa.Double(), nullable=True))
    op.add_column("verdicts", sa.Column("soft", sa.Text(), nullable=True))
