"""A recorded dialogue as its reader found it, and the numbering that makes traces of a file's dialogues."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from cm2_agent.errors import TraceError
from cm2_agent.importers.openai_messages import run_of
from cm2_agent.types.imported import ImportedDialogue
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.run import NOT_TO_LEARN, Run, RunFailure
from cm2_agent.types.run_attributes import GROUP, ROLLOUT, TASK_ID, TASK_VERSION
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

OFFICIAL = "official_reward"
"""The outcome under which a benchmark's own reward, or the one that a record names, is stored."""
_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One dialogue of a record. `key` is what its trace's id is made of, with the place in `prefix`; `task` names the
    task that it is a rollout of."""

    messages: tuple[Message, ...]
    key: JSON
    prefix: str = "chat"
    name: str = "chat"
    tools: tuple[ToolSpec, ...] = ()
    model: str | None = None
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    task: str | None = None
    task_version: int = 1
    rollout: int | None = None
    outcomes: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    attributes: Mapping[str, JSON] = field(default_factory=dict)
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    failure: RunFailure | None = None
    goal: Task | None = None
    note: str | None = None
    checklist: bool = False
    """Whether its task has a checklist, where one is asked for."""


ReadChat: TypeAlias = Callable[[JSON], Chat | Sequence[Chat]]
"""What a reader is: a record → its dialogue, or several. It raises TraceError or ValueError."""


class Chats:
    """The importer of one file: it numbers the rollouts of a task that say no number, and tells equal samples apart."""

    def __init__(self, read: ReadChat) -> None:
        self._read = read
        self._rollouts: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()

    def __call__(
        self, record: JSON, *, source: str, checklists: bool
    ) -> ImportedDialogue | tuple[ImportedDialogue, ...]:
        """One record → its traces. Raises TraceError."""
        found = self._read(record)
        if isinstance(found, Chat):
            return self._dialogue(found, source, checklists)
        if not found:
            raise TraceError("holds no dialogue")
        return tuple(self._dialogue(one, source, checklists) for one in found)

    def _dialogue(self, chat: Chat, source: str, checklists: bool) -> ImportedDialogue:
        if not chat.messages:
            raise TraceError("holds no message; expected a list of at least one")
        identity = content_hash(chat.key)
        attributes: dict[str, JSON] = {
            name: value for name, value in chat.metadata.items() if not name.startswith("cm2.")
        }
        attributes.update(chat.attributes)
        if chat.task is not None:
            # Equal samples of one task are samples still; equal chats without a task are the same chat twice.
            copies = self._seen[identity]
            self._seen[identity] += 1
            identity = identity if chat.rollout is not None or not copies else content_hash([identity, copies])
            system = "\n".join(message.text for message in chat.messages if message.role == "system")
            setting = content_hash([system, [tool.to_json() for tool in chat.tools]])[:8]
            attributes |= {
                TASK_ID: chat.task,
                TASK_VERSION: chat.task_version,
                GROUP: f"{source}:{setting}",
                ROLLOUT: self._rollouts[chat.task] if chat.rollout is None else chat.rollout,
            }
            self._rollouts[chat.task] += 1
        trace_id = f"{chat.prefix}-{identity[:20]}"
        run = run_of(
            trace_id,
            chat.messages,
            name=chat.name,
            attributes=attributes,
            tools=chat.tools,
            model=chat.model,
            sampling=chat.sampling,
        )
        run = replace(_unlearned(run), user=chat.user, session=chat.session, tags=chat.tags)
        if chat.failure is not None:
            run = replace(run, status="error", failure=chat.failure)
        note = "the format has no gold actions" if checklists and not chat.checklist else None
        trace = Trace(id=trace_id, runs=(run,), outcomes=dict(chat.outcomes))
        return ImportedDialogue(trace=trace, task=chat.goal, note=chat.note or note)


def _unlearned(run: Run) -> Run:
    """The run with the calls marked whose messages bear `weight: 0`: they are read, and never trained on."""
    if not any(_weightless(message) for message in run.messages):
        return run
    calls = tuple(
        replace(call, sampling={**call.sampling, "untrainable": NOT_TO_LEARN})
        if call.message is not None and _weightless(run.messages[call.message])
        else call
        for call in run.calls
    )
    return replace(run, calls=calls)


def _weightless(message: Message) -> bool:
    weight = message.extra.get("weight")
    return message.role == "assistant" and isinstance(weight, int | float) and weight == 0


def number_of(value: JSON, what: str) -> float | None:
    """A recorded reward as a number: true is 1, a text that is a number is that. Raises TraceError.

    >>> number_of(True, "reward"), number_of("0.5", "reward"), number_of(None, "reward")
    (1.0, 0.5, None)
    """
    if value is None:
        return None
    try:
        number = (
            float({"true": 1.0, "false": 0.0}.get(value.strip().casefold(), value))
            if isinstance(value, str)
            else (float(value))
        )
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise TraceError(f"has {what} {str(value)[:60]!r}; expected a finite number, true or false")
    return number


def text_of(value: JSON) -> str | None:
    """An id or a name as text: numbers too, None where there is none."""
    if isinstance(value, bool) or value is None or value == "":
        return None
    return str(value) if isinstance(value, str | int | float) else None


def sampling_of(record: Mapping[str, JSON]) -> dict[str, JSON]:
    """The settings of sampling that a record names beside its messages."""
    return {
        key: record[key]
        for key in _SAMPLING
        if isinstance(record.get(key), int | float) and not isinstance(record[key], bool)
    }


def texts_of(value: JSON) -> tuple[str, ...]:
    """Tags: the texts of a list."""
    return (
        tuple(one for one in value if isinstance(one, str))
        if isinstance(value, Iterable | list) and not isinstance(value, str)
        else ()
    )


def mapping_of(value: JSON) -> Mapping[str, JSON]:
    """An object, or an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


__all__ = [
    "OFFICIAL",
    "Chat",
    "Chats",
    "ReadChat",
    "mapping_of",
    "number_of",
    "sampling_of",
    "text_of",
    "texts_of",
]
