"""`cm2 tasks`: compile stored dialogues into files of tasks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.checklists import KEY
from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    command_group,
    echo_err,
    one_line,
    open_store,
    print_result,
    printable,
    tracked,
)
from cm2_agent.cli.trace_filters import FilterOptions, with_filters
from cm2_agent.errors import StoreError, TaskError

if TYPE_CHECKING:
    from cm2_agent.datasets import Redactor, Selection
    from cm2_agent.store import SQLStore, TraceFilter
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.score import Score
    from cm2_agent.types.task import Task
    from cm2_agent.types.trace import Trace

SHOWN = 20
"""The number of unfit traces that are listed one by one; the rest are counted."""


def register(app: typer.Typer) -> None:
    group = command_group("Compile stored dialogues into files of tasks.")

    help = (
        "Compile stored dialogues into tasks, with their turns, tools, recorded calls and checklists; personal data is"
        " replaced. Running it again writes the same tasks."
    )
    group.command("from-traces", help=help, short_help="Compile stored dialogues into tasks.")(from_traces)
    app.add_typer(group, name="tasks")


@with_filters
def from_traces(
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The file of tasks; replaced only once complete.")],
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", metavar="FILE", help="A second file, whose tasks share no entity with the first's."),
    ] = None,
    fraction: Annotated[float, typer.Option("--fraction", help="Hold out at most this share of the tasks.")] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="Decides which tasks are held out.")] = 0,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Only dialogues with at least this reward.")
    ] = None,
    max_score: Annotated[
        float | None, typer.Option("--max-score", help="Only dialogues with at most this reward.")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option("--reward", metavar="VERSION", help="The reward version (default: each dialogue's newest)."),
    ] = None,
    min_outcome: Annotated[
        float | None, typer.Option("--min-outcome", help="Only dialogues whose outcome is at least this.")
    ] = None,
    max_outcome: Annotated[
        float | None, typer.Option("--max-outcome", help="Only dialogues whose outcome is at most this.")
    ] = None,
    outcome: Annotated[
        str | None, typer.Option("--outcome", metavar="NAME", help="Which outcome (default: the only one).")
    ] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option("--tool", metavar="NAME", help="Only dialogues that call this tool; repeatable: all of them."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Only dialogues of this model; repeatable: of one of them."),
    ] = None,
    min_turns: Annotated[int | None, typer.Option("--min-turns", min=0, help="At least this many user turns.")] = None,
    max_turns: Annotated[int | None, typer.Option("--max-turns", min=0, help="At most this many user turns.")] = None,
    min_calls: Annotated[int | None, typer.Option("--min-calls", min=0, help="At least this many tool calls.")] = None,
    max_calls: Annotated[int | None, typer.Option("--max-calls", min=0, help="At most this many tool calls.")] = None,
    checklist: Annotated[
        Path | None,
        typer.Option(
            "--checklist",
            metavar="FILE.yaml",
            help="Every task's checklist (default: the one that scored the dialogue).",
        ),
    ] = None,
    checks: Annotated[
        str | None,
        typer.Option("--checks", metavar="MODULE", help="A module or .py file with the functions of --checklist."),
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="MODEL", help="The model that writes each task its own checklist.")
    ] = None,
    label_base_url: Annotated[
        str | None,
        typer.Option("--label-base-url", metavar="URL", help=f"An OpenAI-compatible server of MODEL (key: {KEY})."),
    ] = None,
    budget_calls: Annotated[
        int | None, typer.Option("--budget-calls", min=0, help="Write no more checklists after this many calls.")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Concurrent checklists.")] = 8,
    keep_personal_data: Annotated[
        bool, typer.Option("--keep-personal-data", help="Do not replace personal data.")
    ] = False,
    entity: Annotated[
        list[str] | None,
        typer.Option(
            "--entity",
            metavar="KEY",
            help="A key whose values are ids: order_id, *_id; repeatable (default: id, *_id, …).",
        ),
    ] = None,
    ignore_entity: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-entity",
            metavar="NAME",
            help="Entities that tasks may share: flight, flight:hat001, flight:hat*; repeatable.",
        ),
    ] = None,
    ignore_above: Annotated[
        float | None,
        typer.Option(
            "--ignore-above", metavar="SHARE", help="Tasks may share entities that more than SHARE of them has."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many tasks, the earliest.")] = None,
    *,
    where: FilterOptions,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    import asyncio

    from cm2_agent.cli.eval import reward_version
    from cm2_agent.cli.redaction import redactor_of
    from cm2_agent.cli.score import load_checklist_and_checks
    from cm2_agent.cli.task_checklists import TaskChecklists
    from cm2_agent.datasets import KEYS, Selection, distinct, split, with_content_id

    if label is not None and checklist is not None:
        raise TaskError(f"--checklist {checklist} and --label {label} both set the tasks' checklists; give one of them")
    if held_out is not None and held_out.resolve() == out.resolve():
        raise TaskError(f"--held-out is the same file as the tasks', {out}; name two files")
    selection = Selection(
        min_score=min_score,
        max_score=max_score,
        outcome=outcome,
        min_outcome=min_outcome,
        max_outcome=max_outcome,
        min_turns=min_turns,
        max_turns=max_turns,
        min_calls=min_calls,
        max_calls=max_calls,
        tools=tuple(tool or ()),
        models=tuple(model or ()),
    )
    given = None if checklist is None else load_checklist_and_checks(checklist, checks)[1]
    with open_store(store, project=project) as opened:
        version = None if reward is None else reward_version(opened, reward)
        redactor = None if keep_personal_data else redactor_of(opened)
        labels = None
        if label is not None:
            earlier = [path for path in (out, held_out) if path is not None]
            labels = TaskChecklists.by(
                label,
                label_base_url,
                store=opened,
                redactor=redactor,
                earlier=earlier,
                budget_calls=budget_calls,
                concurrency=concurrency,
            )
        found = _Compiled(
            store=opened,
            where=where.trace_filter(version),
            selection=selection,
            redactor=redactor,
            given=given,
            reward=version,
            keys=tuple(entity or KEYS),
            unlabelled=labels is not None,
        )
        found.read()
        replaced = {} if redactor is None else dict(redactor.counts.most_common())
        sorted_out = distinct(found.tasks)
        tasks = sorted_out.selected
        if limit is not None and len(tasks) > limit:
            found.left_out["over the limit"] = len(tasks) - limit
            tasks = tasks[:limit]
        if labels is not None:
            tasks = tuple(asyncio.run(labels.of(tasks, [found.sources[task.id] for task in tasks])))
            found.left_out.update(labels.left_out)
    for dropped, original in sorted_out.dropped[:SHOWN]:
        echo_err(f"{dropped} is a duplicate of {original}, with no better score; skipped")
    if len(sorted_out.dropped) > SHOWN:
        echo_err(f"… and {len(sorted_out.dropped) - SHOWN} more duplicates")
    if not tasks:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in found.left_out.most_common())
        raise TaskError(
            f"no dialogue of {found.seen} in {store} became a task: {reasons}. Nothing was written; widen the selection"
        )
    parts = split(
        tasks,
        fraction=fraction if held_out is not None else 0.0,
        seed=seed,
        ignore=ignore_entity or (),
        most=ignore_above,
    )
    if held_out is not None and not parts.held_out:
        why = parts.note or f"there are {len(tasks)} tasks"
        raise TaskError(f"no task can be held out at --fraction {fraction}: {why}. Nothing was written")
    if parts.note is not None:
        echo_err(printable(f"note: {parts.note}"))
    sides = [(out, parts.train)] if held_out is None else [(out, parts.train), (held_out, parts.held_out)]
    _write(
        [(path, [with_content_id(task) for task in side]) for path, side in sides]
    )  # without the entities that were left out: other content
    without = sum(task.checklist is None for task in tasks)
    if without:
        echo_err(
            f"note: {without} tasks have no checklist: their dialogues were not scored by one (cm2 score), and"
            " --checklist named none"
        )
    print_result(
        {
            "tasks": len(parts.train),
            "held_out": len(parts.held_out),
            "duplicates": len(sorted_out.dropped),
            "left_out": dict(found.left_out.most_common()),
            "replaced": replaced,
            "entities": parts.entities,
            "components": len(parts.components),
            "largest_component": parts.components[0],
            "ignored_entities": parts.ignored,
            "without_checklist": without,
            "out": str(out),
        },
        as_json=as_json,
    )


@dataclass(kw_only=True)
class _Compiled:
    """The tasks compiled from the selected traces, and why the others were skipped."""

    store: SQLStore
    where: TraceFilter
    selection: Selection
    redactor: Redactor | None
    given: Checklist | None
    reward: str | None
    keys: tuple[str, ...]
    unlabelled: bool
    """Whether the tasks get their checklists later, from --label."""
    sources: dict[str, str] = field(default_factory=dict)
    """The stored trace id of each task; the task itself holds a redacted one."""
    tasks: list[Task] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    _checklists: dict[str, Checklist | None] = field(default_factory=dict)

    def read(self) -> None:
        """Raises StoreError where the store holds no traces."""
        from cm2_agent.datasets import UnfitTrace, task_from_trace

        chosen = 0
        self.seen = self.store.count_traces()
        for trace, score in tracked(self.store.scored_traces(self.where, reward=self.reward), "compiling"):
            chosen += 1
            reason = self.selection.against(trace, score)
            if reason is not None:
                self.left_out[reason] += 1
                continue
            try:
                checklist = None if self.unlabelled else self._checklist(trace, score)
                task = task_from_trace(trace, checklist=checklist, redactor=self.redactor, score=score, keys=self.keys)
            except UnfitTrace as error:
                self.left_out[error.reason] += 1
                if sum(self.left_out.values()) <= SHOWN:
                    echo_err(printable(f"{one_line(trace.id, 60)}: no task: {error.reason}"))
                continue
            self.tasks.append(task)
            self.sources[task.id] = trace.id
        if chosen < self.seen:
            self.left_out["not chosen by the options"] = self.seen - chosen
        if not self.seen:
            raise StoreError(
                f"{self.store.url} holds no traces; import some first: cm2 import FORMAT FILE --store {self.store.url}"
            )

    def _checklist(self, trace: Trace, score: Score | None) -> Checklist | None:
        """The checklist of --checklist, else the one that scored the dialogue: stored, or its task's own."""
        if self.given is not None or score is None or score.checklist is None:
            return self.given
        if score.checklist not in self._checklists:
            self._checklists[score.checklist] = self.store.checklist(score.checklist) or self._own(
                trace, score.checklist
            )
        return self._checklists[score.checklist]

    def _own(self, trace: Trace, hash: str) -> Checklist | None:
        """The checklist of the trace's task, where it can be the one of that hash: functions count for the hash, and a
        task does not store them."""
        task = None if trace.task_id is None else self.store.task(trace.task_id, trace.task_version)
        own = None if task is None else task.own_checklist()
        named = own is not None and any(item.named_functions for item in own.items)
        return own if own is not None and (named or own.hash == hash) else None


def _write(files: Sequence[tuple[Path, Sequence[Any]]]) -> None:
    """Write all files or none: each is written beside its place, and moved there once all are complete."""
    from cm2_agent.types.task import save_tasks

    partials = [path.with_name(f".{path.name}.{os.getpid()}.part") for path, _ in files]
    try:
        for (path, tasks), partial in zip(files, partials, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tasks(tasks, partial)
        for (path, _), partial in zip(files, partials, strict=True):
            partial.replace(path)
    except OSError as error:
        names = ", ".join(str(path) for path, _ in files)
        raise TaskError(
            f"cannot write {names}: {error.strerror or error}; name files in a folder that can be written"
        ) from error
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
