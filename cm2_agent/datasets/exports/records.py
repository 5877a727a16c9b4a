"""A stored trace as a record of each format, and which facts about it the format leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cm2_agent.datasets.exports.chat_messages import (
    Entry,
    Losses,
    chat_messages,
    dialogue_messages,
    flat,
    tools_of,
)
from cm2_agent.datasets.exports.sharegpt_turns import sharegpt_record
from cm2_agent.trainers.template_steps import template_tools
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run_attributes import ROLLOUT
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

OFFICIAL: Final = "official_reward"
"""The outcome that a record's `reward` becomes when it is imported."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of one record a trace. `make` gives the record, None where the dialogue holds nothing for it; `without`
    names what it leaves out of the facts about a trace."""

    name: str
    make: Callable[[Trace, Score | None, Losses], Entry | None]
    without: tuple[str, ...] = ()


def cm2_record(trace: Trace, score: Score | None, losses: Losses) -> Entry:
    """All that is stored of a trace, and its score."""
    return {"trace": trace.to_json(), "score": None if score is None else score.to_json()}


def chat_record(trace: Trace, score: Score | None, losses: Losses) -> Entry | None:
    """OpenAI's chat format: `messages` and `tools`, and beside them the facts that `cm2 import` reads."""
    messages = flat(chat_messages(dialogue_messages(trace), losses))
    if not messages:
        return None
    tools = template_tools(tools_of(trace))
    return {"messages": messages, **({"tools": tools} if tools else {}), **_facts(trace, score)}


def sft_record(trace: Trace, score: Score | None, losses: Losses) -> Entry | None:
    """TRL's conversational format: `messages` as chat templates read them, `tools` as JSON text."""
    found = dialogue_messages(trace)
    if not any(message.role == "assistant" for message in found):
        return None
    return {"messages": flat(chat_messages(found, losses, arguments_as_text=False)), **tools_text(trace)}


def tools_text(trace: Trace) -> Entry:
    """The column `tools` as TRL reads it from a file: JSON text, since a table would give each schema the others'
    keys."""
    tools = template_tools(tools_of(trace))
    return {"tools": _text(tools)} if tools else {}


def share_record(trace: Trace, score: Score | None, losses: Losses) -> Entry | None:
    """Turns of ShareGPT's kind."""
    record = sharegpt_record(trace, losses)
    return record if record["conversations"] else None


def table_record(trace: Trace, score: Score | None, losses: Losses) -> Entry:
    """A row of a table: columns to ask by, the messages, and all that is stored as JSON text."""
    messages = flat(chat_messages(dialogue_messages(trace), Losses()))
    facts = _facts(trace, score)
    last = trace.runs[-1] if trace.runs else None
    return {
        **{key: facts.get(key) for key in ("id", "task_id", "task_version", "rollout", "model", "user", "session_id")},
        "tags": facts.get("tags", []),
        "metadata": _text(facts.get("metadata", {})),
        "started": min((run.started for run in trace.runs), default=0) or None,
        "status": None if last is None else last.status,
        "reward": None if score is None else score.reward,
        "reward_version": None if score is None else score.reward_version,
        "null_reason": None if score is None else score.null_reason,
        "outcomes": _text(dict(trace.outcomes)),
        "messages": [{key: message.get(key) for key in ("role", "name")} | _plain(message) for message in messages],
        "tools": _text(template_tools(tools_of(trace))),
        "trace": _text(trace.to_json()),
        "score": _text(None if score is None else score.to_json()),
    }


def _plain(message: Mapping[str, JSON]) -> Entry:
    """A message in columns of one type each."""
    content = message["content"]
    return {
        "content": content if isinstance(content, str | None) else _text(content),
        "reasoning_content": message.get("reasoning_content"),
        "tool_call_id": message.get("tool_call_id"),
        "tool_calls": message.get("tool_calls"),
    }


def _text(value: JSON) -> str:
    """JSON that any file takes: half a surrogate pair is escaped."""
    return json.dumps(value, allow_nan=False)


def _number(value: JSON) -> int | None:
    """A whole number that a column takes."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def _facts(trace: Trace, score: Score | None) -> Entry:
    """What `cm2 import` reads beside the messages; what is not known is left out."""
    runs = trace.runs
    models = {call.model for call in trace.calls if call.message is not None}
    metadata = {name: value for name, value in trace.attributes.items() if not name.startswith("cm2.")}
    reward = score.reward if score is not None else trace.outcomes.get(OFFICIAL)
    found: Entry = {
        "id": trace.id,
        "task_id": trace.task_id,
        "task_version": None if trace.task_id is None else _number(trace.task_version),
        "rollout": _number(trace.attributes.get(ROLLOUT)),
        "reward": reward,
        "model": next(iter(models)) if len(models) == 1 else None,
        "user": next((run.user for run in reversed(runs) if run.user is not None), None),
        "session_id": next((run.session for run in reversed(runs) if run.session is not None), None),
        "tags": list(next((run.tags for run in reversed(runs) if run.tags), ())),
        "metadata": metadata,
    }
    return {name: value for name, value in found.items() if value not in (None, [], {})}


_UNSAID = ("times", "token ids", "verdicts", "steps of sub-agents", "marks of failed calls")
FORMATS: Final[Mapping[str, Format]] = {
    one.name: one
    for one in (
        Format(name="cm2", make=cm2_record),
        Format(name="chat", make=chat_record, without=_UNSAID),
        Format(name="sft", make=sft_record, without=("rewards", "tasks", "answers not to learn from", *_UNSAID)),
        Format(name="sharegpt", make=share_record, without=("rewards", "tasks", "answers not to learn from", *_UNSAID)),
        Format(name="parquet", make=table_record),
    )
}
"""The formats that write a record a trace, by name."""


def left_out(trace: Trace, score: Score | None) -> frozenset[str]:
    """Which of the facts that some formats leave out are stored of this trace."""
    parts = [part for message in trace.messages for part in message.responses]
    known = {
        "times": any(run.started for run in trace.runs),
        "token ids": any(call.completion_ids is not None for call in trace.calls),
        "verdicts": score is not None and bool(score.verdicts),
        "steps of sub-agents": any(call.message is None and call.error is None for call in trace.calls),
        "marks of failed calls": any(part.error for part in parts),
        "rewards": score is not None and score.reward is not None,
        "tasks": trace.task_id is not None,
        "answers not to learn from": any(message.extra.get("weight") == 0 for message in trace.messages),
    }
    return frozenset(name for name, held in known.items() if held)


__all__ = ["FORMATS", "Format", "left_out", "tools_text"]
