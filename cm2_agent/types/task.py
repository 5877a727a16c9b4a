"""Task: what an agent is asked to do; tasks as JSON Lines files, and whether a task can be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cm2_agent.errors import ChecklistError, TaskError
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import ChecklistModel
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.scripted_turns import exogenous_pattern, turns_that_count
from cm2_agent.types.text import first_problem


class RecordedCall(BaseModel):
    """One real call of a tool, for replay and as an example to a simulator: `result` is the answer as the agent saw it
    (text, or a list of content blocks), `error` takes its place where the call failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    """The tool."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Those of the call."""
    result: Any = None
    """The answer: text, or a list of content blocks."""
    error: str | None = None
    """The failure, in place of a result."""


class Persona(BaseModel):
    """Whom a simulated user plays: who they are, what they want, what they can and cannot say when asked, and in what
    mood."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    persona: str = Field(min_length=1)
    """Who they are."""
    goal: str | None = None
    """What they want."""
    knows: tuple[str, ...] = ()
    """What they say when asked."""
    does_not_know: tuple[str, ...] = ()
    """What they cannot say when asked."""
    mood: str | None = None
    """How they speak."""


class Task(BaseModel):
    """One thing an agent is asked to do: scripted user turns, or a persona for a simulated user.

    Args:
        id: Unique within a file.
        version: From 1; a task whose content changes gets a new one, since a GRPO group never mixes versions.
        system: The system prompt.
        turns: The user's messages, in order.
        persona: Whom a simulated user plays; then `turns` does not fix the user's messages.
        max_turns: At most this many user messages of a simulated user.
        tools: What the task declares, for an agent that is made for it (`agents(model)`).
        recorded: Calls that `replay` answers with, and a simulator takes as examples.
        checklist: The task's own.
        entities: What the task is about (`"order:7"`): held-out tasks share none with those trained on.
        outcome: The expected end, for verifiers.
        metadata: Free.

    Raises:
        ValidationError: pydantic's, for an unknown key, a wrong type or two tools of one name.

    >>> from cm2_agent import Task
    >>> Task(id="t1", turns=["Where is order 7?"], entities=["order:7"]).scripted_turns
    1
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    id: str = Field(min_length=1)
    version: int = Field(default=1, ge=1)
    system: str | None = None
    turns: tuple[str, ...] = ()
    persona: str | Persona | None = None
    max_turns: int | None = Field(default=None, ge=1)
    tools: tuple[ToolSpec, ...] = ()
    recorded: tuple[RecordedCall, ...] = ()
    checklist: ChecklistModel | None = None
    entities: tuple[str, ...] = ()
    outcome: Any = None
    metadata: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("tools")
    @classmethod
    def _unique_tools(cls, tools: tuple[ToolSpec, ...]) -> tuple[ToolSpec, ...]:
        names = [tool.name for tool in tools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tool named twice: {', '.join(twice)}; tool names must be unique within a task")
        return tools

    @property
    def scripted_turns(self) -> int | None:
        """How many user turns are fixed before the rollout, or None where a simulated user decides."""
        return len(self.turns) if self.persona is None and self.turns else None

    def own_checklist(self) -> Checklist | None:
        """The task's own checklist, validated. Raises ChecklistError."""
        return None if self.checklist is None else Checklist.from_model(self.checklist)

    def to_json(self) -> dict[str, Any]:
        """Every key, those at their default too: a line of a tasks file."""
        return self.model_dump(mode="json", exclude_none=False)


def load_tasks(path: str | Path) -> list[Task]:
    r"""The tasks of a JSON Lines file, one object a line; blank lines are skipped.

    Raises:
        TaskError: The file cannot be read or holds no task, a line is no task, its own checklist cannot be used, or an
            id occurs twice. The message begins with `file:line:`; no task is returned then.

    >>> from pathlib import Path
    >>> from cm2_agent import load_tasks
    >>> _ = Path("tasks.jsonl").write_text('{"id": "where", "turns": ["Where is order 7?"]}\n')
    >>> [(task.id, task.turns) for task in load_tasks("tasks.jsonl")]
    [('where', ('Where is order 7?',))]
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot read tasks: {error}. Expected a JSON Lines file, one task a line.") from error
    tasks: list[Task] = []
    lines_of: dict[str, int] = {}
    for number, line in _numbered(text):
        try:
            task = Task.model_validate_json(line)
            task.own_checklist()
        except ValidationError as error:
            raise TaskError(f"{path}:{number}: not a task: {first_problem(error, whole='line', shown=80)}") from error
        except ChecklistError as error:
            raise TaskError(f"{path}:{number}: the task's checklist: {error}") from error
        if task.id in lines_of:
            raise TaskError(
                f"{path}:{number}: task id {task.id!r} was used before on line {lines_of[task.id]}; ids must be unique"
            )
        lines_of[task.id] = number
        tasks.append(task)
    if not tasks:
        raise TaskError(f"{path}: holds no task. Expected one JSON object a line, such as {_example()}")
    return tasks


def save_tasks(tasks: Iterable[Task], path: str | Path) -> Path:
    """Write tasks as JSON Lines (UTF-8, an existing file is replaced) and return the path.

    >>> from cm2_agent import Task, load_tasks, save_tasks
    >>> path = save_tasks([Task(id="where", turns=["Where is order 7?"])], "tasks.jsonl")
    >>> load_tasks(path)[0].id
    'where'
    """
    path = Path(path)
    path.write_text("".join(json.dumps(task.to_json(), ensure_ascii=False) + "\n" for task in tasks), encoding="utf-8")
    return path


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _example() -> str:
    return '{"id": "t1", "turns": ["Where is order 7?"]}'


def check_trainable(checklist: Checklist | None, task: Task) -> None:
    """Whether rollouts of the task may be trained on by the checklist: L must be fixed before the rollout
    (docs/method.md, "Scope and L").

    Raises ChecklistError: no checklist; a simulated user with items that are not `turn: trace` (the policy would decide
    how many turns count); scripted turns of which none has an item, or none has one that applies to the user's messages
    (`when: {user_matches: …}`). Names the items."""
    if checklist is None:
        raise ChecklistError(
            f"task {task.id!r} has no checklist and none was given; nothing could score its rollouts: give one"
        )
    ids = ", ".join(item.id for item in checklist.items if item.turn != "trace")
    if task.scripted_turns is None:
        if ids:
            raise ChecklistError(
                f"checklist {checklist.name!r} has items of turns ({ids}) and task {task.id!r} a simulated user: the"
                " policy would decide how many turns count; give these items turn: trace, or script the task's turns"
            )
    elif not turns_that_count(checklist, task.turns):
        whens = ", ".join(item.id for item in checklist.items if exogenous_pattern(item) is not None)
        ids = ", ".join(item.id for item in checklist.items)
        why = f"{whens} apply to other messages than its user's" if whens else "turns are 0-based"
        raise ChecklistError(
            f"checklist {checklist.name!r} has no item in the {task.scripted_turns} turns of task {task.id!r} (its"
            f" items: {ids}); {why}: correct the items' turns and `when`, or use another checklist"
        )
