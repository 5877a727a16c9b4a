"""A task without personal data, as a redactor leaves it."""

from __future__ import annotations

from cm2_agent.redaction.redacted_checklist import redacted_checklist_json
from cm2_agent.redaction.redactor import Redactor
from cm2_agent.types.task import Task

__all__ = ["redacted_task"]


def redacted_task(task: Task, redactor: Redactor) -> Task:
    """The task with its words redacted: turns, persona, system prompt, recorded calls, checklist, metadata. Its id,
    version and the names of its tools stay. Raises TaskError where its checklist is none any more.

    >>> from cm2_agent import Redactor, Task
    >>> redacted_task(Task(id="t", turns=["I am ada@x.org"]), Redactor(key=b"k")).turns
    ('I am uj6rz4mddkykr6rsi@redacted.example.com',)
    """
    own = task.own_checklist()
    fixed = {"id": task.id, "version": task.version}
    words = {key: value for key, value in task.to_json().items() if key not in (*fixed, "checklist")}
    shown = redactor.redact_json(words)
    for group in ("tools", "recorded"):
        names = [entry.name for entry in getattr(task, group)]
        shown[group] = [{**new, "name": name} for new, name in zip(shown[group], names, strict=True)]
    checklist = None if own is None else redacted_checklist_json(own, redactor)
    return Task.model_validate({**shown, **fixed, "checklist": checklist})
