"""The tables. The migrations must lead to exactly these (a test compares them).

What happened: traces ← runs ← model_calls, tool_runs; contents (messages, tool definitions); outcomes; tasks
What is under way: checkpoints ← checkpoint_writes;  simulations (what a simulator answered);  claims, scoring_queues
What was received: received (spans on their way to a run); access_tokens (who may send them)
What it is worth:  checklists;  reward_versions ← scores ← verdicts;  verdict_cache;  labels;  certificates;  incidents
What was sent:     sent (verdicts that other tools have)
Who earns it:      policies ← promotions
What is gone:      erasures

Every noun has its natural key as a unique constraint (project and run id; project and trace id; task id and version;
trace, reward version and runs …), so that writing twice changes nothing; `seq` is the short key by which rows refer to
each other, and the order of storing. NULL is always "nobody knows"."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from cm2_agent.store.columns import DEFAULT_PROJECT as DEFAULT_PROJECT
from cm2_agent.store.columns import big, key
from cm2_agent.store.columns import metadata as metadata
from cm2_agent.store.columns import project_column as _project
from cm2_agent.store.columns import seq_column as _seq
from cm2_agent.store.policy_tables import policies as policies
from cm2_agent.store.policy_tables import promotions as promotions
from cm2_agent.store.received_tables import access_tokens as access_tokens
from cm2_agent.store.received_tables import received as received
from cm2_agent.store.sent_tables import sent as sent
from cm2_agent.store.work_tables import claims as claims
from cm2_agent.store.work_tables import scoring_queues as scoring_queues

contents = Table(
    "contents",
    metadata,
    Column("hash", LargeBinary, primary_key=True, doc="SHA-256 of the canonical JSON: `Message.hash` in bytes"),
    Column("kind", Text, nullable=False, doc="`message`, `tool` or `toolset` (a list of tool hashes in hexadecimal)"),
    Column("body", Text, doc="JSON; NULL where it is packed"),
    Column("packed", LargeBinary, doc="the JSON in DEFLATE (`unpack_text` in cm2_agent/store/codec.py)"),
    info={"doc": "One message, tool definition or list of tools; each content is stored once."},
)

tasks = Table(
    "tasks",
    metadata,
    _seq(),
    Column("id", key(), nullable=False),
    Column("version", Integer, nullable=False),
    Column("hash", Text, nullable=False, doc="of the content: one id and version has one"),
    Column("body", Text, nullable=False, doc="JSON"),
    UniqueConstraint("id", "version"),
    info={"doc": "One version of one task."},
)

group_keys = Table(
    "group_keys",
    metadata,
    _seq(),
    Column("hash", LargeBinary, nullable=False, unique=True, doc="address of the key"),
    Column("task", key(), nullable=False),
    Column("policy", key(), doc="the model version that sampled"),
    Column("key", Text, nullable=False, doc="the whole group key, without the reward version"),
    Index(None, "policy", "task"),
    Index(None, "task"),
    info={"doc": "What the rollouts of a group have in common, short of the reward version."},
)

traces = Table(
    "traces",
    metadata,
    _seq(),
    _project(),
    Column("id", key(), nullable=False, doc="the thread's id, a branch's, or that of its only run"),
    Column("started", big(), nullable=False, doc="of the first run"),
    Column("runs", Integer, nullable=False, doc="how many"),
    Column("task", key(), doc="the task's id"),
    Column("policy", key(), doc="the model version"),
    Column("group_key", big(), ForeignKey("group_keys.seq")),
    Column("rollout", big(), doc="which rollout of its group"),
    Column("user", key(), doc="the application's id of the user; like the next three the last that a run gave"),
    Column("session", key(), doc="the application's id of the session"),
    Column("tags", Text, doc="the caller's tags, a JSON list"),
    Column("metadata", Text, doc="the caller's metadata, JSON"),
    UniqueConstraint("project", "id"),
    Index(None, "project", "started", "id"),
    Index(None, "task"),
    Index(None, "policy"),
    Index(None, "user"),
    Index(
        "ix_traces_fetch", "group_key", "rollout", "started", "id", "seq", "project"
    ),  # the GRPO fetch reads nothing else of a trace
    info={"doc": "One trace: a dialogue."},
)

runs = Table(
    "runs",
    metadata,
    _seq(),
    _project(),
    Column("id", key(), nullable=False),
    Column("trace", big(), ForeignKey("traces.seq"), nullable=False),
    Column("threaded", Boolean, nullable=False, doc="whether the trace's id is the run's thread"),
    Column("thread", key(), doc="the run's thread where it is not the trace's id; NULL for a run without one"),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("failure_kind", Text, doc="ToolError, ModelError, or the crash's exception name"),
    Column("failure_message", Text),
    Column("started", big(), nullable=False, doc="nanoseconds since the epoch"),
    Column("ended", big(), nullable=False, doc="nanoseconds since the epoch"),
    Column("hash", LargeBinary, nullable=False, doc="of everything in it, to tell a repetition from a conflict"),
    Column("attributes", Text, nullable=False, doc="JSON"),
    Column("messages", LargeBinary, nullable=False, doc="joined content addresses"),
    Column(
        "history", LargeBinary, doc="what it was shown before, where no earlier run of the trace holds it; addresses"
    ),
    Column("input", Text, doc="the graph's input, JSON"),
    Column("output", Text, doc="the graph's output, JSON"),
    Column("branch_parent", key(), doc="the id of the trace that this run's trace left"),
    Column("branch_messages", Integer, doc="how many messages the two share"),
    Column("branch_reason", Text, doc="`sampled` or `person`"),
    Column("states", Text, doc="the states of the graph's messages: [[hash, messages added], …], JSON"),
    Column("user", key(), doc="the application's id of the user"),
    Column("session", key(), doc="the application's id of the session"),
    Column("tags", Text, doc="the caller's tags, a JSON list"),
    Column("dialogue", LargeBinary, doc="key of all that user and agent had said; NULL where nobody joins by it"),
    UniqueConstraint("project", "id"),
    Index(None, "trace"),
    Index(None, "trace", "started"),
    Index(None, "project", "thread"),
    Index(None, "project", "dialogue"),
    info={"doc": "One run of a trace: an invocation of the graph."},
)

model_calls = Table(
    "model_calls",
    metadata,
    Column("run", big(), ForeignKey("runs.seq"), primary_key=True),
    Column("position", Integer, primary_key=True, doc="order within the run"),
    Column("span_id", Text, nullable=False),
    Column("model", Text),
    Column("model_version", Text),
    Column("message", Integer, doc="index in the run's messages of the message that it wrote; NULL off the main line"),
    Column("started", big(), nullable=False),
    Column("ended", big(), nullable=False),
    Column("finish_reason", Text),
    Column("error", Text),
    Column("untrainable", Text, doc="`ModelCall.untrainable` when it was stored"),
    Column("sampling", Text, nullable=False, doc="JSON"),
    Column("usage", Text, nullable=False, doc="JSON"),
    Column("toolset", LargeBinary, doc="content address of the tools offered; empty: those of the base call"),
    Column(
        "output",
        LargeBinary,
        doc="content address of the answer; NULL: the run's message `message`, none where that is NULL; empty: none",
    ),
    Column("agent", Text, doc="the agent whose step it is, where a graph holds several"),
    Column("changed", Text, doc="what the application did to the answer: `edited` or `rewritten`"),
    # An earlier call of the trace whose beginning this one shares: of `shared_input` messages and `shared_ids` tokens
    # of (prompt or input, then completion or output). `input` and `prompt_ids` hold what comes after.
    Column("base_run", big(), doc="an earlier call of the trace whose beginning this one shares"),
    Column("base_position", Integer, doc="that call's position"),
    Column("shared_input", Integer, nullable=False, doc="how many messages of that call's input and output are shared"),
    Column(
        "shared_ids", Integer, nullable=False, doc="how many tokens of that call's prompt and completion are shared"
    ),
    Column(
        "input",
        LargeBinary,
        nullable=False,
        doc="content addresses of the messages after the shared ones; one byte: how many of the run's messages before"
        " `message` they are",
    ),
    Column("prompt_ids", LargeBinary, doc="token ids of the prompt after the shared ones (`unpack_ids` in codec.py)"),
    Column("completion_ids", LargeBinary, doc="token ids of what was sampled, likewise"),
    Column("logprobs", LargeBinary, doc="one natural logarithm a sampled token"),
    info={"doc": "One answer of a chat model in a run."},
)

tool_runs = Table(
    "tool_runs",
    metadata,
    Column("run", big(), ForeignKey("runs.seq"), primary_key=True),
    Column("position", Integer, primary_key=True, doc="order within the run"),
    Column("span_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("call_id", Text, doc="the model's id of the call"),
    Column("backend", Text, doc="who answered"),
    Column("started", big(), nullable=False),
    Column("ended", big(), nullable=False),
    Column("error", Text),
    Column("arguments", Text, nullable=False, doc="JSON"),
    Column("result", Text, doc="JSON; NULL: what the run's first message that answers `call_id` holds"),
    Column("fault", Text, doc="what was injected into the call; NULL where nothing was"),
    Column("agent", Text, doc="the agent that called it, where a graph holds several"),
    Column("artifact", Text, doc="what the tool gave the application beside its result, JSON"),
    info={"doc": "One execution of a tool in a run."},
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("trace", big(), ForeignKey("traces.seq"), primary_key=True),
    Column("name", key(), primary_key=True),
    Column("value", Double, doc="NULL: nobody knows"),
    info={"doc": "One outcome of a trace, such as a verifier's."},
)

checklists = Table(
    "checklists",
    metadata,
    _seq(),
    Column("hash", Text, nullable=False, unique=True),
    Column("name", key(), nullable=False),
    Column("version", Integer, nullable=False),
    Column("body", Text, nullable=False, doc="JSON"),
    Column("sources", Text, nullable=False, doc="`{item id: source of its function}`"),
    UniqueConstraint("name", "version"),
    info={"doc": "One version of one checklist."},
)

reward_versions = Table(
    "reward_versions",
    metadata,
    _seq(),
    Column("version", key(), nullable=False, unique=True),
    Column("settings", Text, doc="JSON"),
    info={"doc": "One reward version: checklist, judge and settings as one string."},
)

reward_checklists = Table(
    "reward_checklists",
    metadata,
    Column("checklist", Text, primary_key=True, doc="its hash"),
    Column("reward", big(), ForeignKey("reward_versions.seq"), primary_key=True),
    info={"doc": "Which reward versions score by which checklist."},
)

scores = Table(
    "scores",
    metadata,
    _seq(),
    Column("trace", big(), ForeignKey("traces.seq"), nullable=False),
    Column("reward", big(), ForeignKey("reward_versions.seq"), nullable=False),
    Column("value", Double, doc="the reward; NULL where a verdict is missing, and `null_reason` says why"),
    Column("null_reason", Text),
    Column("checklist", Text, doc="its hash"),
    Column("runs", Integer, nullable=False, doc="how many runs the trace had; the current score saw most"),
    Column(
        "turns",
        Text,
        nullable=False,
        doc="TurnScores without verdicts, JSON: all, or those that differ from the score before",
    ),
    Column("components", Text, nullable=False, doc="JSON"),
    Column("usage", Text, doc="what judging took (`Score.usage`); NULL where no judge was asked"),
    Column("stored", big(), doc="nanoseconds since the epoch; NULL for those of version 0.1"),
    Column("lower", Double, doc="the reward with every policy-caused NULL unpaid; NULL where it is pending"),
    Column("upper", Double, doc="the reward with every policy-caused NULL paid"),
    UniqueConstraint(
        "trace", "reward", "runs"
    ),  # and no index on `reward` alone: a planner would start a fetch there, among all scores
    info={"doc": "The score of one trace under one reward version, when it had so many runs."},
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("score", big(), ForeignKey("scores.seq"), primary_key=True),
    Column("block", Integer, primary_key=True, doc="which of the score's counted turns"),
    Column("position", Integer, primary_key=True),
    Column("turn", Integer, doc="NULL in the closing block"),
    Column("item", key(), nullable=False),
    Column("value", Boolean),
    Column("step", Integer, doc="row of the satisfaction matrix from which it is true; NULL where it never is"),
    Column("paid", Boolean, doc="whether its weight was paid"),
    Column("weight", Double, nullable=False, doc="normalised within the turn"),
    Column("reason", Text, doc="what decided it where the item itself was not looked at, or could not be"),
    Column("cause", Text, doc="of a NULL: `infrastructure` or `content`"),
    Column("depends_on", Text, nullable=False, doc="indices into the turn's verdicts, JSON"),
    Column("explanation", Text),
    Column("evidence", Text, nullable=False, doc="JSON"),
    Column("payment", Double, doc="the share of its weight that was paid, where that is a fraction"),
    Column("soft", Text, doc="the λ of each dependency, JSON; NULL where all are hard"),
    Index(None, "item"),
    info={"doc": "The verdict on one item in one turn of a score: of a turn that differs from the score before."},
)

verdict_cache = Table(
    "verdict_cache",
    metadata,
    Column("key", key(), primary_key=True, doc="of everything that the verdict depends on"),
    Column("item", key(), nullable=False),
    Column("value", Boolean),
    Column("body", Text, nullable=False, doc="the rest of the verdict, JSON"),
    Column("stored", big(), nullable=False, doc="nanoseconds since the epoch"),
    info={"doc": "A judge's verdict that need not be asked for again."},
)

simulations = Table(
    "simulations",
    metadata,
    Column("key", key(), primary_key=True, doc="of everything that the simulator was asked, and its seed"),
    Column("tool", key(), nullable=False),
    Column("body", Text, nullable=False, doc="the reply, as JSON"),
    Column("stored", big(), nullable=False, doc="nanoseconds since the epoch"),
    info={"doc": "A simulator's answer that need not be asked for again."},
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _project(primary_key=True),
    Column("thread", key(), primary_key=True),
    Column("namespace", key(), primary_key=True),
    Column("checkpoint", key(), nullable=False, doc="its id: only the newest of a thread is stored"),
    Column("parent", key()),
    Column("kind", Text, nullable=False, doc="of the serialisation, as langgraph names it"),
    Column("body", LargeBinary, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("stored", big(), nullable=False, doc="nanoseconds since the epoch"),
    info={"doc": "The newest checkpoint of a dialogue under way; a finished one is a trace and has none."},
)

checkpoint_writes = Table(
    "checkpoint_writes",
    metadata,
    _project(primary_key=True),
    Column("thread", key(), primary_key=True),
    Column("namespace", key(), primary_key=True),
    Column("checkpoint", key(), primary_key=True, doc="the id of the checkpoint"),
    Column("task", key(), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("path", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("kind", Text, nullable=False, doc="of the serialisation, as langgraph names it"),
    Column("body", LargeBinary, nullable=False),
    info={"doc": "What a node of a dialogue under way has written since its checkpoint."},
)

labels = Table(
    "labels",
    metadata,
    _project(primary_key=True),
    Column("trace", key(), primary_key=True, doc="its id, not its row: people may judge what is not stored (yet)"),
    Column("item", key(), primary_key=True),
    Column("turn", Integer, primary_key=True, doc="-1: the closing block, or none named"),
    Column("rater", key(), primary_key=True),
    Column("value", Boolean, doc="NULL: the rater could not tell"),
    Column("task", key()),
    Column("note", Text),
    info={"doc": "One person's verdict on one item of one trace."},
)

certificates = Table(
    "certificates",
    metadata,
    _seq(),
    _project(),
    Column("reward", key(), nullable=False, doc="the reward version, which may have no score yet"),
    Column("body", Text, nullable=False, doc="the certificate, JSON"),
    Column("stored", big(), nullable=False, doc="nanoseconds since the epoch"),
    Index(None, "project", "reward"),
    info={"doc": "What attacks on a reward version could get paid when it was measured; the last row counts."},
)

incidents = Table(
    "incidents",
    metadata,
    Column("kind", key(), primary_key=True),
    Column("count", big(), nullable=False),
    Column("detail", Text, nullable=False, doc="of the last one"),
    Column("first", big(), nullable=False, doc="nanoseconds since the epoch"),
    Column("last", big(), nullable=False, doc="nanoseconds since the epoch"),
    info={"doc": "One kind of background failure, counted; `cm2 doctor` shows them."},
)

erasures = Table(
    "erasures",
    metadata,
    _seq(),
    Column("erased", big(), nullable=False, doc="nanoseconds since the epoch"),
    Column("removed", Text, nullable=False, doc="how many of what, JSON"),
    info={"doc": "One erasure. A process that has seen fewer of them forgets what it knew to be stored."},
)
