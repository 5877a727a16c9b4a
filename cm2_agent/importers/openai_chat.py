"""Chats in OpenAI's format: a list of messages, or an object with `messages` and what is known about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cm2_agent.errors import TraceError
from cm2_agent.importers.openai_messages import read_messages, read_tools, run_of
from cm2_agent.importers.tau_bench import OFFICIAL
from cm2_agent.types.imported import ImportedDialogue
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.run_attributes import GROUP, ROLLOUT, TASK_ID, TASK_VERSION
from cm2_agent.types.text import first_problem
from cm2_agent.types.trace import Trace

_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")


class _Record(BaseModel):
    """What is read of a record; other keys may be there."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    messages: list[Any] = Field(min_length=1)
    tools: list[Any] | None = None
    task_id: str | int | None = None
    task_version: int = Field(default=1, ge=1)
    rollout: int | None = Field(default=None, ge=0)
    trial: int | None = Field(default=None, ge=0)
    reward: float | None = Field(default=None, strict=True, allow_inf_nan=False)
    model: str | None = None
    id: str | int | None = None


class OpenAIChats:
    """The importer of one file: it numbers the rollouts of a task that say no number, and tells equal samples apart."""

    def __init__(self) -> None:
        self._rollouts: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()

    def __call__(self, record: JSON, *, source: str, checklists: bool) -> ImportedDialogue:
        """One record → its trace. Raises TraceError. The format knows no gold actions, so there is never a
        checklist."""
        if isinstance(record, list):
            record = {"messages": record}
        if not isinstance(record, Mapping):
            raise TraceError(f"is {type(record).__name__}; expected a list of messages, or an object with messages")
        try:
            chat = _Record.model_validate(record)
        except ValidationError as error:
            raise TraceError(first_problem(error, shown=60)) from error
        messages, tools = read_messages(chat.messages, unmarked=True), read_tools(chat.tools)
        sampling = {
            key: record[key]
            for key in _SAMPLING
            if isinstance(record.get(key), int | float) and not isinstance(record[key], bool)
        }
        rollout = chat.rollout if chat.rollout is not None else chat.trial
        known = [chat.id, chat.task_id, chat.task_version, rollout, chat.model, sampling]
        identity = content_hash([*known, chat.messages, chat.tools])
        attributes: dict[str, JSON] = {}
        if chat.task_id is not None:
            task = str(chat.task_id)
            # Equal samples of one task are samples still; equal chats without a task are the same chat twice.
            copies = self._seen[identity]
            self._seen[identity] += 1
            identity = identity if rollout is not None or not copies else content_hash([identity, copies])
            system = "\n".join(message.text for message in messages if message.role == "system")
            setting = content_hash([system, [tool.to_json() for tool in tools]])[:8]
            attributes = {
                TASK_ID: task,
                TASK_VERSION: chat.task_version,
                GROUP: f"{source}:{setting}",
                ROLLOUT: self._rollouts[task] if rollout is None else rollout,
            }
            self._rollouts[task] += 1
        trace_id = f"chat-{identity[:20]}"
        run = run_of(
            trace_id, messages, name="chat", attributes=attributes, tools=tools, model=chat.model, sampling=sampling
        )
        reason = "the format has no gold actions" if checklists else None
        outcomes = {} if chat.reward is None else {OFFICIAL: chat.reward}
        return ImportedDialogue(trace=Trace(id=trace_id, runs=(run,), outcomes=outcomes), note=reason)
