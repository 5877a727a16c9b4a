"""The tables of work that processes share: who does what, and what scores by workers may cost."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Integer, Table, Text, UniqueConstraint

from cm2_agent.store.columns import big, key, metadata, project_column, seq_column

claims = Table(
    "claims",
    metadata,
    project_column(primary_key=True),
    Column("name", key(), primary_key=True, doc="what is worked on: the trace id of a rollout, say"),
    Column("owner", Text, nullable=False, doc="the process: machine, process id, when it began, a random id"),
    Column("until", big(), nullable=False, doc="nanoseconds since the epoch; later it is anybody's"),
    info={"doc": "One piece of work that a process has taken, so that no other one does it too."},
)

scoring_queues = Table(
    "scoring_queues",
    metadata,
    seq_column(),
    project_column(),
    Column("reward", key(), nullable=False, doc="the reward version by which every trace of the project is scored"),
    Column("queue", Text, nullable=False, unique=True, doc="the queue of its jobs"),
    Column("active", Boolean, nullable=False, doc="whether a trace that is stored becomes a job"),
    Column("budget_usd", Double, doc="US dollars that all workers may spend; NULL for no limit"),
    Column("budget_calls", big(), doc="calls of the judge that all workers may make; NULL for no limit"),
    Column("rpm", Double, doc="calls a minute of all workers; NULL for no limit"),
    Column("tpm", Double, doc="tokens a minute of all workers; NULL for no limit"),
    Column("calls", big(), nullable=False, doc="calls made, those under way too"),
    Column("spent_usd", Double, doc="spent, and reserved for calls under way; NULL where a price was not known"),
    Column("dearest_usd", Double, nullable=False, doc="what the dearest call has cost"),
    Column("next_call", big(), nullable=False, doc="when the next call may start, nanoseconds since the epoch"),
    Column("next_token", big(), nullable=False, doc="when the tokens of the next call may be sent, likewise"),
    Column("parked", big(), doc="until when its jobs rest, nanoseconds since the epoch; NULL while they are done"),
    Column("cause", Text, doc="why they rest"),
    Column("parks", Integer, nullable=False, doc="how often in a row the judge was tried in vain"),
    UniqueConstraint("project", "reward"),
    info={"doc": "One reward version by which workers score a project's traces (`cm2 work`), and what it may cost."},
)

__all__ = ["claims", "scoring_queues"]
