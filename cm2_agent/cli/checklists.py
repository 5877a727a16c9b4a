"""`cm2 checklists write`: a model writes checklists from stored reference dialogues, as tasks or as YAML files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    progress,
)
from cm2_agent.cli.judge_options import BaseUrlOption, JudgeOption, JudgeOptions
from cm2_agent.cli.redaction import RedactOption, redactor_of
from cm2_agent.errors import BudgetExhausted, JudgeRefused, StoreError, TaskError

if TYPE_CHECKING:
    from cm2_agent.datasets import Redactor
    from cm2_agent.rewards.authoring.writer import ChecklistWriter, WrittenChecklist
    from cm2_agent.store import SQLStore
    from cm2_agent.types.task import Task
    from cm2_agent.types.trace import Trace

KEY = "CM2_LABEL_API_KEY"


def register(app: typer.Typer) -> None:
    help = (
        "Write a checklist from each stored reference dialogue with a model, and test it on corrupted copies of the"
        " reference. Dialogues with a checklist already are skipped, so the same command resumes where it stopped."
    )
    group = command_group("Write checklists with a model from good dialogues.")
    group.command("write", help=help, short_help="Write a checklist from each stored reference dialogue.")(write)
    app.add_typer(group, name="checklists")
    app.command("label", help=help, hidden=True)(write)  # its name up to version 0.1


def write(
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="The model that writes: openai:gpt-5-mini, ollama:…, local:FOLDER."
        ),
    ],
    base_url: Annotated[
        str | None,
        typer.Option("--model-base-url", metavar="URL", help=f"An OpenAI-compatible server of MODEL (key: {KEY})."),
    ] = None,
    traces: Annotated[
        list[str] | None,
        typer.Option("--traces", metavar="ID", help="A reference dialogue; repeatable (default: all)."),
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", metavar="TASKS.jsonl", help="Only these tasks, each from its best stored dialogue."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="A .jsonl file of tasks, or a folder of YAML checklists.")
    ] = Path("checklists.jsonl"),
    judge: JudgeOption = None,
    judge_base_url: BaseUrlOption = None,
    block: Annotated[
        bool, typer.Option("--block", help="Items over the whole dialogue, as for a simulated user, not per turn.")
    ] = False,
    budget_calls: Annotated[
        int | None, typer.Option("--budget-calls", min=0, help="Stop after this many calls, the judge's included.")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Dialogues at a time.")] = 8,
    redact: RedactOption = False,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    import asyncio

    from cm2_agent.llm.limits import RateLimits
    from cm2_agent.rewards.authoring.writer import ChecklistWriter

    output = _Output.at(out)
    judge_model = JudgeOptions(
        model=judge,
        base_url=judge_base_url,
        votes=None,
        protocol=None,
        budget_usd=None,
        budget_calls=budget_calls if judge else None,
        concurrency=None,
        rpm=None,
        tpm=None,
        price=None,
    ).make()
    limits = (
        RateLimits(concurrency=concurrency, budget_calls=budget_calls) if judge_model is None else judge_model.limits
    )
    writer = ChecklistWriter(model, base_url=base_url, api_key=os.environ.get(KEY), judge=judge_model, limits=limits)
    with open_store(store, project=project) as opened:
        selected = _select_references(opened, traces, tasks)
        redactor = redactor_of(opened) if redact else None
        result = asyncio.run(
            _write_all(opened, selected, writer, output, redactor, block=block, concurrency=concurrency)
        )
    print_result({**result, "out": str(out)}, as_json=as_json)
    if result["failed"] and not result["labelled"] and not result["known"]:
        raise typer.Exit(1)


@dataclass(kw_only=True)
class _Output:
    """Where checklists go: a JSON Lines file of tasks, or a folder of YAML files, one a task."""

    path: Path
    folder: bool
    known: set[str]
    """The tasks that it holds already."""

    @classmethod
    def at(cls, path: Path) -> _Output:
        """The output at a path. Raises TaskError where the path is neither."""
        from cm2_agent.types.task import load_tasks

        if (
            path.suffix not in ("", ".jsonl")
            or (path.suffix == ".jsonl" and path.is_dir())
            or (path.suffix == "" and path.is_file())
        ):
            raise TaskError(
                f"--out is {path}; expected a file that ends in .jsonl (tasks) or a folder (YAML checklists)"
            )
        if path.suffix == "":
            return cls(path=path, folder=True, known=set())
        filled = path.exists() and path.read_text(encoding="utf-8").strip()
        return cls(path=path, folder=False, known={task.id for task in load_tasks(path)} if filled else set())

    def holds(self, task_id: str) -> bool:
        return self._file(task_id).exists() if self.folder else task_id in self.known

    def write(self, task: Task) -> None:
        import json

        from cm2_agent.types.checklist_yaml import dump_checklist

        if not self.folder:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(task.to_json(), ensure_ascii=False) + "\n")
        elif (checklist := task.own_checklist()) is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._file(task.id).write_text(dump_checklist(checklist), encoding="utf-8")

    def _file(self, task_id: str) -> Path:
        from cm2_agent.types.json_values import content_hash

        safe = re.sub(r"[^A-Za-z0-9_\-]+", "_", task_id)[:80]
        return self.path / (f"{safe}.yaml" if safe == task_id else f"{safe}-{content_hash(task_id)[:8]}.yaml")


def _select_references(
    store: SQLStore, ids: list[str] | None, tasks: Path | None
) -> dict[str, tuple[str, Task | None]]:
    """For each task id its reference's trace id and the task of the file: of several traces, the first with the best
    outcomes. Raises StoreError where a named trace, or every trace of the tasks, is missing."""
    from cm2_agent.types.task import load_tasks

    listed = None if tasks is None else {task.id: task for task in load_tasks(tasks)}
    best: dict[str, tuple[float, str]] = {}
    seen: set[str] = set()
    for trace in store.traces(ids=ids):
        seen.add(trace.id)
        key = trace.task_id or trace.id
        if listed is not None and key not in listed:
            continue
        outcomes = [value for value in trace.outcomes.values() if value is not None]
        rank = (sum(outcomes) / len(outcomes) if outcomes else -1.0) if trace.failure is None and trace.turns else -2.0
        if key not in best or rank > best[key][0]:
            best[key] = (rank, trace.id)
    missing = sorted(set(ids or ()) - seen)
    if missing:
        raise StoreError(f"{store.url} holds no trace {', '.join(missing)}; cm2 show --store {store.url} lists them")
    if not best:
        missing_traces = "no traces" if listed is None else f"no trace of the tasks in {tasks}"
        raise StoreError(
            f"{store.url} holds {missing_traces}; import some first: cm2 import FORMAT FILE --store {store.url}"
        )
    for name in sorted(set(listed or ()) - set(best)):
        echo_err(printable(f"task {name}: no stored trace can be its reference; skipped"))
    return {key: (found, None if listed is None else listed[key]) for key, (_, found) in best.items()}


async def _write_all(
    store: SQLStore,
    selected: dict[str, tuple[str, Task | None]],
    writer: ChecklistWriter,
    output: _Output,
    redactor: Redactor | None,
    *,
    block: bool,
    concurrency: int,
) -> dict[str, Any]:
    import asyncio

    counts: Counter[str] = Counter()
    waiting = {key: one for key, one in selected.items() if not output.holds(key)}
    counts["known"] = len(selected) - len(waiting)
    references = _references(store, waiting, redactor)
    out_of_budget: list[str] = []

    async def worker(advance: Any) -> None:
        for trace, newest, base in references:
            if out_of_budget:
                return
            try:
                await _write_one(store, writer, output, trace, newest, base, block, counts)
            except JudgeRefused:  # every other task would meet the same
                raise
            except BudgetExhausted as error:
                out_of_budget.append(str(error))
                return
            advance()

    with progress("labelling", len(waiting)) as advance:
        await asyncio.gather(*(worker(advance) for _ in range(min(concurrency, max(1, len(waiting))))))
    left = len(selected) - counts["known"] - counts["labelled"] - counts["failed"]
    if out_of_budget:
        echo_err(f"{left} left: {out_of_budget[0]}")
    names = (
        "labelled",
        "known",
        "failed",
        "items",
        "checked",
        "unchecked",
        "rewritten",
        "dropped",
        "unlinked",
        "corrupted",
    )
    return {**{name: counts[name] for name in names}, "left": left, "calls": writer.limits.calls}


async def _write_one(
    store: SQLStore,
    writer: ChecklistWriter,
    output: _Output,
    trace: Trace,
    newest: Task | None,
    base: Task | None,
    block: bool,
    counts: Counter[str],
) -> None:
    """Write one reference's checklist, store its task, and count."""
    from cm2_agent.rewards.authoring.prompt import prompt_version
    from cm2_agent.rewards.authoring.writer import LABEL, task_of, task_with_checklist

    label = {} if newest is None else dict(newest.metadata.get(LABEL) or {})
    same = (label.get("trace"), label.get("model"), label.get("prompt")) == (
        trace.id,
        writer.model_name,
        prompt_version(),
    )
    if newest is not None and newest.checklist is not None and same:
        output.write(newest)  # written before, but not to this output
        counts["known"] += 1
        return
    task = task_of(trace, base or newest)
    if newest is not None:
        task = task.model_copy(update={"version": newest.version + 1})
    found = await writer(trace, task, block=block)
    _count(found, counts)
    if found.checklist is None:
        echo_err(printable(f"{one_line(trace.id, 60)}: not labelled: {one_line(found.reason or 'unknown', 300)}"))
        return
    for name, why in found.dropped.items():
        echo_err(printable(f"{one_line(trace.id, 60)}: dropped {name}: {one_line(why, 200)}"))
    labelled = task_with_checklist(task, found, writer.model_name)
    store.save_task(labelled)
    output.write(labelled)


def _count(found: WrittenChecklist, counts: Counter[str]) -> None:
    counts["labelled" if found.checklist is not None else "failed"] += 1
    counts["dropped"] += len(found.dropped)
    counts["corrupted"] += found.corrupted
    if found.checklist is not None:
        counts["items"] += len(found.checklist.items)
        counts["checked"] += found.checked
        counts["unchecked"] += len(found.unchecked)
        counts["rewritten"] += len(found.rewritten)
        counts["unlinked"] += found.unlinked


def _references(
    store: SQLStore, waiting: dict[str, tuple[str, Task | None]], redactor: Redactor | None
) -> Iterator[tuple[Trace, Task | None, Task | None]]:
    """Each reference with its newest stored task and the task of the file, all redacted where there is a redactor."""
    from cm2_agent.redaction.redacted_run import redacted_trace
    from cm2_agent.redaction.redacted_task import redacted_task

    def shown(task: Task | None) -> Task | None:
        return task if task is None or redactor is None else redacted_task(task, redactor)

    traces: Iterable[Trace] = store.traces(ids=[found for found, _ in waiting.values()]) if waiting else ()
    for trace in traces:
        key = trace.task_id or trace.id
        seen = trace if redactor is None else redacted_trace(trace, redactor)
        yield seen, shown(store.task(key)), shown(waiting[key][1])
