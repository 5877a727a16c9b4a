"""The tables of policies and their promotions."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Table, Text, UniqueConstraint, text

from cm2_agent.store.columns import big, key, metadata, project_column, seq_column

policies = Table(
    "policies",
    metadata,
    seq_column(),
    project_column(),
    Column("name", key(), nullable=False, doc="the agent's, whose policies replace each other"),
    Column("version", key(), nullable=False, doc="the model version that its rollouts bear"),
    Column("parent", key(), doc="the version that it was trained from"),
    Column("state", Text, nullable=False, doc="`candidate`, `promoted`, `replaced`, `rejected` or `rolled_back`"),
    Column("folder", Text, doc="of its weights"),
    Column("reward", key(), doc="the reward version that it was trained on"),
    Column("certificate", Text, doc="when that version's certificate was made; NULL where it had none"),
    Column("data", Text, nullable=False, doc="what it was trained on, JSON"),
    Column("settings", Text, nullable=False, doc="of the training, JSON"),
    Column("metrics", Text, nullable=False, doc="of training and evaluation, JSON"),
    Column("stored", big(), nullable=False, doc="nanoseconds since the epoch"),
    UniqueConstraint("project", "name", "version"),
    Index(
        "uq_policies_promoted",
        "project",
        "name",
        unique=True,
        sqlite_where=text("state = 'promoted'"),
        postgresql_where=text("state = 'promoted'"),
    ),
    info={"doc": "One policy of an agent. At most one of a name is promoted."},
)

promotions = Table(
    "promotions",
    metadata,
    seq_column(),
    Column("policy", big(), ForeignKey("policies.seq"), nullable=False),
    Column("reason", Text, nullable=False, doc="what spoke for it, JSON"),
    Column("promoted", big(), nullable=False, doc="nanoseconds since the epoch"),
    Column("undone", big(), doc="when it was rolled back; NULL: it was not"),
    Index(None, "policy"),
    info={"doc": "One promotion: the history by which a roll-back finds the policy before."},
)
