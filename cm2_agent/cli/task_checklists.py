"""Checklists that a model writes for new tasks, in `cm2 tasks from-traces --label MODEL`.

The model sees the dialogues with personal data replaced. A checklist of the same task in an earlier file, by the same
model and prompt, is reused."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm2_agent.cli.checklists import KEY
from cm2_agent.cli.common import echo_err, one_line, printable, progress
from cm2_agent.errors import BudgetExhausted, JudgeRefused, TaskError
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.messages import Message
from cm2_agent.types.task import Task, load_tasks
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    from cm2_agent.datasets import Redactor
    from cm2_agent.rewards.authoring.writer import ChecklistWriter
    from cm2_agent.store import SQLStore

OUT_OF_BUDGET = "not labelled: the budget is spent"


@dataclass(kw_only=True)
class TaskChecklists:
    """Writes the checklists of tasks, in order. `left_out` counts the tasks without one, by reason."""

    store: SQLStore
    writer: ChecklistWriter
    redactor: Redactor | None
    known: dict[str, Task]
    concurrency: int
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def by(
        cls,
        model: str,
        base_url: str | None,
        *,
        store: SQLStore,
        redactor: Redactor | None,
        earlier: Iterable[Path],
        budget_calls: int | None,
        concurrency: int,
    ) -> TaskChecklists:
        """Raises MissingExtra and ModelError as ChecklistWriter does; TaskError where a file holds no tasks."""
        from cm2_agent.llm.limits import RateLimits
        from cm2_agent.rewards.authoring.writer import ChecklistWriter

        limits = RateLimits(concurrency=concurrency, budget_calls=budget_calls)
        writer = ChecklistWriter(model, base_url=base_url, api_key=os.environ.get(KEY), limits=limits)
        files = [path for path in earlier if path.exists() and path.stat().st_size]
        known = {_unlabelled(task): task for path in files for task in load_tasks(path) if task.checklist is not None}
        return cls(store=store, writer=writer, redactor=redactor, known=known, concurrency=concurrency)

    async def of(self, tasks: Sequence[Task], traces: Sequence[str]) -> list[Task]:
        """The tasks with their checklists, without those that got none; `traces` are the ids of their traces."""
        labelled: list[Task | None] = [None] * len(tasks)
        waiting = iter(range(len(tasks)))

        async def worker(advance: Any) -> None:
            for index in waiting:
                labelled[index] = await self._one(tasks[index], traces[index])
                advance()

        with progress("labelling", len(tasks)) as advance:
            await asyncio.gather(*(worker(advance) for _ in range(self.concurrency)))
        return [task for task in labelled if task is not None]

    async def _one(self, task: Task, trace_id: str) -> Task | None:
        from cm2_agent.datasets import with_content_id
        from cm2_agent.rewards.authoring.prompt import prompt_version
        from cm2_agent.rewards.authoring.writer import LABEL, task_with_checklist

        earlier = self.known.get(_unlabelled(task))
        if earlier is not None:
            label = dict(earlier.metadata.get(LABEL) or {})
            if (label.get("model"), label.get("prompt")) == (self.writer.model_name, prompt_version()):
                return earlier
        if self.left_out[OUT_OF_BUDGET]:
            self.left_out[OUT_OF_BUDGET] += 1
            return None
        trace = self.store.trace(trace_id)
        if trace is None:
            raise TaskError(f"trace {trace_id!r} is no longer in {self.store.url}; type the command again")
        try:
            found = await self.writer(self._redacted_trace(trace), task)
        except JudgeRefused:  # every other task would meet the same
            raise
        except BudgetExhausted as error:
            echo_err(printable(str(error)))
            self.left_out[OUT_OF_BUDGET] += 1
            return None
        if found.checklist is None:
            echo_err(printable(f"{task.id}: not labelled: {one_line(found.reason or 'unknown', 300)}"))
            self.left_out["not labelled"] += 1
            return None
        return with_content_id(task_with_checklist(task, found, self.writer.model_name))

    def _redacted_trace(self, trace: Trace) -> Trace:
        """The messages of the dialogue alone, with personal data replaced."""
        runs = tuple(
            replace(run, messages=tuple(map(self._redacted_message, run.messages)), calls=(), tools=())
            for run in trace.runs
        )
        shown = replace(trace, runs=runs)
        return shown if self.redactor is None else replace(shown, id=self.redactor.redact(trace.id))

    def _redacted_message(self, message: Message) -> Message:
        return message if self.redactor is None else Message.from_json(self.redactor.redact_json(message.to_json()))


def _unlabelled(task: Task) -> str:
    """A hash of what a task has with and without its checklist."""
    from cm2_agent.rewards.authoring.writer import LABEL

    data = task.to_json()
    metadata = {name: value for name, value in data["metadata"].items() if name != LABEL}
    return content_hash({**data, "id": None, "checklist": None, "entities": None, "metadata": metadata})


__all__ = ["TaskChecklists"]
