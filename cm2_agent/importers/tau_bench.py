"""tau-bench result files: a JSON list of rollouts, several a task, each with the benchmark's own reward.

Source: github.com/sierra-research/tau-bench (`historical_trajectories/`). The user was simulated, so the tasks have a
persona and no scripted turns; the tools ran against the benchmark's own database."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, number_of
from cm2_agent.importers.gold_actions import READS, WRITES, GoldAction, compile_gold
from cm2_agent.importers.openai_messages import read_messages, run_of
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.imported import ImportedDialogue
from cm2_agent.types.json_values import JSON, canonical_json, content_hash
from cm2_agent.types.messages import Message
from cm2_agent.types.run_attributes import CUT, GROUP, ROLLOUT, TASK_ID, TASK_VERSION, TOOL_BACKENDS
from cm2_agent.types.task import Task
from cm2_agent.types.text import first_problem
from cm2_agent.types.trace import Trace

STOP = "###STOP###"
"""What the simulated user says when the dialogue is over."""
TRANSFER = "transfer_to_human_agents"
"""The tool that ends the dialogue."""


_HEADING = re.compile(r"^#\s*(\w+) agent policy", re.IGNORECASE | re.MULTILINE)


class _Loose(BaseModel):
    """Another project's format: keys we do not read may come and go."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Goal(_Loose):
    user_id: str | None = None
    instruction: str = ""
    actions: tuple[GoldAction, ...] = ()
    outputs: tuple[str, ...] = ()


class _Info(_Loose):
    task: _Goal = _Goal()


class _Record(_Loose):
    task_id: int | str
    trial: int = Field(default=0, ge=0)
    reward: Any = None
    info: _Info = _Info()
    traj: list[Any] = Field(min_length=1)


def read_tau_bench(record: JSON, *, source: str, checklists: bool, desk: str | None = None) -> ImportedDialogue:
    """One record → the trace, its task, and a note on why the task got no checklist although asked for one.

    `source` names the sampling (the file): rollouts of the same task from two files are two groups. The desk is the one
    given, else the one that the system prompt or the file's name says; never one guessed from what the agent did, since
    rollouts of one task would then be of two. The trace's id comes from what was done and said, so that importing again
    changes nothing. Raises TraceError."""
    if not isinstance(record, Mapping):
        raise TraceError(f"is {type(record).__name__}; expected an object with task_id, trial, reward, info and traj")
    try:
        rollout = _Record.model_validate(record)
    except ValidationError as error:
        raise TraceError(first_problem(error, shown=60)) from error
    messages = read_messages(rollout.traj, failed=lambda text: text.startswith(("Error", "Unknown action")))
    reward = number_of(rollout.reward, "reward")
    desk = desk or _desk(messages, source)
    goal = rollout.info.task
    prefix = f"tau-{desk or content_hash(goal.instruction)[:8]}-{rollout.task_id}"
    trace_id = f"{prefix}-{rollout.trial}-{content_hash([rollout.task_id, rollout.trial, record['traj']])[:12]}"
    attributes: dict[str, JSON] = {TASK_ID: prefix, TASK_VERSION: 1, ROLLOUT: rollout.trial, GROUP: source}
    if desk is not None and desk in WRITES:
        attributes[TOOL_BACKENDS] = canonical_json(dict.fromkeys((*READS[desk], *WRITES[desk]), "real"))
    if not _ended(messages):
        attributes[CUT] = "limit of steps"
    run = run_of(trace_id, messages, name=prefix, attributes=attributes, backend="real")
    trace = Trace(id=trace_id, runs=(run,), outcomes={} if reward is None else {OFFICIAL: reward})
    checklist, reason = None, None
    if checklists:
        strange = {action.name for action in goal.actions} - {*READS.get(desk or "", ()), *WRITES.get(desk or "", ())}
        if desk is None or desk not in WRITES:
            reason = (
                f"no table of write tools for this desk (known: {', '.join(WRITES)}): its task gets no checklist."
                " Neither its system prompt nor the file's name says its desk, or it is another; --desk names it"
            )
        elif strange:
            reason = (
                f"the {desk} desk has no tool {sorted(strange)[0]}: its task gets no checklist; --desk names another"
            )
        else:
            checklist = compile_gold(goal.actions, goal.outputs, name=prefix, writes=WRITES[desk])
            Checklist.from_model(checklist)
    task = Task(
        id=prefix,
        system=messages[0].text if messages[0].role == "system" else None,
        persona=goal.instruction or None,
        checklist=checklist,
        entities=() if goal.user_id is None else (f"user:{goal.user_id}",),
        outcome={"actions": [action.model_dump(mode="json") for action in goal.actions], "outputs": list(goal.outputs)},
        metadata={"source": "tau-bench"} if desk is None else {"source": "tau-bench", "desk": desk},
    )
    return ImportedDialogue(trace=trace, task=task, note=reason)


def _desk(messages: Sequence[Message], source: str) -> str | None:
    """The desk that the system prompt says (`# Retail agent policy`), else the file's name; None where neither does."""
    system = messages[0].text if messages[0].role == "system" else ""
    heading = _HEADING.search(system)
    named = [desk for desk in WRITES if heading is not None and desk == heading.group(1).casefold()]
    for text in (system, source):
        named = named or [desk for desk in WRITES if desk in text.casefold()]
    return named[0] if len(named) == 1 else None


def _ended(messages: Sequence[Message]) -> bool:
    """Whether the dialogue came to its own end: the user took leave, or was handed to a human."""
    last = messages[-1]
    if last.role == "tool":
        calls = next((message.tool_calls for message in reversed(messages) if message.role == "assistant"), ())
        return any(call.name == TRANSFER for call in calls) and not any(response.error for response in last.responses)
    return last.role == "user" and STOP in last.text
