"""What an importer makes of one record of somebody else's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cm2_agent.types.human_labels import Label
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace


@dataclass(frozen=True, kw_only=True)
class ImportedDialogue:
    """A recorded dialogue and what else its record tells.

    `task` is the task that the dialogue was a rollout of; it is stored with `cm2 import --checklists`. `note` is shown
    once for all records that have it, such as why tasks got no checklist although one was asked for. `score` is what
    CM2 gave the trace before, and is stored with it.

    >>> from cm2_agent import ImportedDialogue, Message, Run, Trace
    >>> run = Run(id="t1", messages=(Message.of("user", "Hi"),))
    >>> ImportedDialogue(trace=Trace.of(run), note="no tool results were logged").trace.id
    't1'
    """

    trace: Trace
    task: Task | None = None
    note: str | None = None
    score: Score | None = None


ImportResult: TypeAlias = Trace | ImportedDialogue | Sequence[ImportedDialogue] | Sequence[Label]
"""A dialogue, a dialogue with its task, several of those, or people's labels."""
