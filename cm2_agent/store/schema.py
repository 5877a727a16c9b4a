"""The tables; apart from the migrations, which must lead to exactly these (a test compares them).

What happened: traces ← runs ← model_calls, tool_runs; contents (messages, tool definitions); outcomes; tasks
What is under way: checkpoints ← checkpoint_writes;  simulations (what a simulator answered)
What it is worth:  checklists;  reward_versions ← scores ← verdicts;  verdict_cache;  labels;  incidents

Every noun has its natural key as a unique constraint (run id; trace id; task id and version; trace and reward version
…), so that writing twice changes nothing; `seq` is the short key by which rows refer to each other, and the order of
storing. NULL is always "nobody knows"."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)


def big() -> TypeEngine[int]:
    """64 bits everywhere; on SQLite the name that makes a primary key the row id."""
    return BigInteger().with_variant(Integer, "sqlite")


def key() -> TypeEngine[str]:
    """Text that orders by code point on every database, whatever its locale."""
    return Text().with_variant(Text(collation="C"), "postgresql")


def _seq() -> Column[int]:
    return Column("seq", big(), primary_key=True, autoincrement=True)


contents = Table(
    "contents",
    metadata,
    Column("hash", LargeBinary, primary_key=True),  # SHA-256 of the canonical JSON: Message.hash in bytes
    Column("kind", Text, nullable=False),  # message | tool | toolset (a list of tool hashes in hexadecimal)
    Column("body", Text, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    _seq(),
    Column("id", key(), nullable=False),
    Column("version", Integer, nullable=False),
    Column("hash", Text, nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("id", "version"),
)

group_keys = Table(
    "group_keys",
    metadata,
    _seq(),
    Column("hash", LargeBinary, nullable=False, unique=True),  # address of the key
    Column("task", key(), nullable=False),
    Column("policy", key()),
    Column("key", Text, nullable=False),  # cm2_agent.types.group.group_key without the reward version
    Index(None, "policy", "task"),
    Index(None, "task"),
)

traces = Table(
    "traces",
    metadata,
    _seq(),
    Column("id", key(), nullable=False, unique=True),
    Column("started", big(), nullable=False),  # of the first run
    Column("runs", Integer, nullable=False),
    Column("task", key()),
    Column("policy", key()),
    Column("group_key", big(), ForeignKey("group_keys.seq")),
    Column("rollout", big()),
    Index(None, "started", "id"),
    Index(None, "task"),
    Index(None, "policy"),
    Index(
        "ix_traces_fetch", "group_key", "rollout", "started", "id", "seq"
    ),  # the GRPO fetch reads nothing else of a trace
)

runs = Table(
    "runs",
    metadata,
    _seq(),
    Column("id", key(), nullable=False, unique=True),
    Column("trace", big(), ForeignKey("traces.seq"), nullable=False),
    Column(
        "threaded", Boolean, nullable=False
    ),  # whether the trace's id was the run's thread, or the run is a trace by itself
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("failure_kind", Text),
    Column("failure_message", Text),
    Column("started", big(), nullable=False),
    Column("ended", big(), nullable=False),
    Column("hash", LargeBinary, nullable=False),  # of everything in it, to tell a repetition from a conflict
    Column("attributes", Text, nullable=False),
    Column("messages", LargeBinary, nullable=False),  # joined content addresses
    Index(None, "trace"),
)

model_calls = Table(
    "model_calls",
    metadata,
    Column("run", big(), ForeignKey("runs.seq"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("span_id", Text, nullable=False),
    Column("model", Text),
    Column("model_version", Text),
    Column("message", Integer),
    Column("started", big(), nullable=False),
    Column("ended", big(), nullable=False),
    Column("finish_reason", Text),
    Column("error", Text),
    Column("untrainable", Text),  # ModelCall.untrainable when it was stored
    Column("sampling", Text, nullable=False),
    Column("usage", Text, nullable=False),
    Column("toolset", LargeBinary),
    Column("output", LargeBinary),
    # An earlier call of the trace whose beginning this one shares: of `shared_input` messages and `shared_ids` tokens
    # of (prompt or input, then completion or output). `input` and `prompt_ids` hold what comes after.
    Column("base_run", big()),
    Column("base_position", Integer),
    Column("shared_input", Integer, nullable=False),
    Column("shared_ids", Integer, nullable=False),
    Column("input", LargeBinary, nullable=False),
    Column("prompt_ids", LargeBinary),
    Column("completion_ids", LargeBinary),
    Column("logprobs", LargeBinary),
)

tool_runs = Table(
    "tool_runs",
    metadata,
    Column("run", big(), ForeignKey("runs.seq"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("span_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("call_id", Text),
    Column("backend", Text),
    Column("started", big(), nullable=False),
    Column("ended", big(), nullable=False),
    Column("error", Text),
    Column("arguments", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("fault", Text),  # what was injected into the call, NULL where nothing was
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("trace", big(), ForeignKey("traces.seq"), primary_key=True),
    Column("name", key(), primary_key=True),
    Column("value", Double),
)

checklists = Table(
    "checklists",
    metadata,
    _seq(),
    Column("hash", Text, nullable=False, unique=True),
    Column("name", key(), nullable=False),
    Column("version", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("sources", Text, nullable=False),  # {item id: source of its function}
    UniqueConstraint("name", "version"),
)

reward_versions = Table(
    "reward_versions",
    metadata,
    _seq(),
    Column("version", key(), nullable=False, unique=True),
    Column("settings", Text),
)

reward_checklists = Table(
    "reward_checklists",
    metadata,
    Column("checklist", Text, primary_key=True),
    Column("reward", big(), ForeignKey("reward_versions.seq"), primary_key=True),
)

scores = Table(
    "scores",
    metadata,
    _seq(),
    Column("trace", big(), ForeignKey("traces.seq"), nullable=False),
    Column("reward", big(), ForeignKey("reward_versions.seq"), nullable=False),
    Column("value", Double),
    Column("null_reason", Text),
    Column("checklist", Text),
    Column("runs", Integer, nullable=False),
    Column("turns", Text, nullable=False),  # TurnScores without their verdicts
    Column("components", Text, nullable=False),
    Column("usage", Text),  # what judging took (Score.usage); NULL where no judge was asked
    UniqueConstraint(
        "trace", "reward"
    ),  # and no index on `reward` alone: a planner would start a fetch there, among all scores
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("score", big(), ForeignKey("scores.seq"), primary_key=True),
    Column("block", Integer, primary_key=True),  # which of the score's counted turns
    Column("position", Integer, primary_key=True),
    Column("turn", Integer),  # NULL in the closing block
    Column("item", key(), nullable=False),
    Column("value", Boolean),
    Column("step", Integer),
    Column("paid", Boolean),
    Column("weight", Double, nullable=False),
    Column("reason", Text),
    Column("cause", Text),
    Column("depends_on", Text, nullable=False),
    Column("explanation", Text),
    Column("evidence", Text, nullable=False),
    Index(None, "item"),
)

verdict_cache = Table(
    "verdict_cache",
    metadata,
    Column("key", key(), primary_key=True),  # of everything that the verdict depends on (rewards/judges/cache.py)
    Column("item", key(), nullable=False),
    Column("value", Boolean),
    Column("body", Text, nullable=False),  # the rest of the Verdict
    Column("stored", big(), nullable=False),  # nanoseconds since the epoch
)

simulations = Table(
    "simulations",
    metadata,
    Column(
        "key", key(), primary_key=True
    ),  # of everything that the simulator was asked, and its seed (graphs/backends/simulate.py)
    Column("tool", key(), nullable=False),
    Column("body", Text, nullable=False),  # the reply, as JSON
    Column("stored", big(), nullable=False),  # nanoseconds since the epoch
)

checkpoints = Table(
    "checkpoints",  # of dialogues that are under way: a finished one is a trace, and its checkpoint is deleted
    metadata,
    Column("thread", key(), primary_key=True),
    Column("namespace", key(), primary_key=True),
    Column("checkpoint", key(), nullable=False),  # its id: only the newest of a thread is kept
    Column("parent", key()),
    Column("kind", Text, nullable=False),  # of the serialisation, as langgraph names it
    Column("body", LargeBinary, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("stored", big(), nullable=False),  # nanoseconds since the epoch
)

checkpoint_writes = Table(
    "checkpoint_writes",
    metadata,
    Column("thread", key(), primary_key=True),
    Column("namespace", key(), primary_key=True),
    Column("checkpoint", key(), primary_key=True),
    Column("task", key(), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("path", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

labels = Table(
    "labels",
    metadata,
    Column("trace", key(), primary_key=True),  # its id, not its row: people may judge what is not stored (yet)
    Column("item", key(), primary_key=True),
    Column("turn", Integer, primary_key=True),  # -1: the closing block, or none named
    Column("rater", key(), primary_key=True),
    Column("value", Boolean),
    Column("task", key()),
    Column("note", Text),
)

incidents = Table(
    "incidents",
    metadata,
    Column("kind", key(), primary_key=True),
    Column("count", big(), nullable=False),
    Column("detail", Text, nullable=False),  # of the last one
    Column("first", big(), nullable=False),  # nanoseconds since the epoch
    Column("last", big(), nullable=False),
)
