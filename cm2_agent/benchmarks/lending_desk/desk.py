"""The lending desk as a `TrainingDesk`: the sample app with its tasks, checklist and cold starts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from cm2_agent.benchmarks.lending_desk import app
from cm2_agent.benchmarks.lending_desk.catalog import Catalog
from cm2_agent.benchmarks.lending_desk.checks import FUNCTIONS
from cm2_agent.benchmarks.lending_desk.demonstrations import STARTS
from cm2_agent.benchmarks.lending_desk.tasks import heldout_tasks, training_tasks
from cm2_agent.benchmarks.training_desk import Progress, TrainingDesk
from cm2_agent.types.checklist_yaml import load_checklist
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace


@cache
def lending_desk() -> TrainingDesk:
    """The lending desk.

    >>> from cm2_agent.benchmarks.lending_desk.desk import lending_desk
    >>> desk = lending_desk()
    >>> desk.checklist.name, [tool.name for tool in desk.tools], len(desk.training(0, 3, 2)[0].turns)
    ('lending', ['find_copy', 'count_waiting', 'extend_loan'], 3)
    """
    return TrainingDesk(
        name="lending",
        graph=app.build_graph,
        tools=app.TOOLS,
        actions={
            "find_copy": Catalog.find_copy,
            "count_waiting": Catalog.count_waiting,
            "extend_loan": Catalog.extend_loan,
        },
        tool_error=app.NOT_FOUND,
        max_calls=app.MAX_CALLS,
        open=_catalog,
        verify=_verify,
        checklist=load_checklist(str(files("cm2_agent.benchmarks.lending_desk") / "lending.yaml"), FUNCTIONS),
        training=training_tasks,
        heldout=heldout_tasks,
        starts=tuple(STARTS),
        cold_start=_cold_start,
    )


def _catalog(task: Task) -> AbstractContextManager[Catalog]:
    return closing(app.open_catalog(task.metadata["branch"]))


def _verify(task: Task, catalog: Any, trace: Trace) -> Mapping[str, float | None]:
    """What the app's own success function says; None for a dialogue that died, since nobody was served or failed
    then."""
    if trace.failure is not None:
        return {"success": None}
    replies = [next((step.message.text for step in reversed(turn.steps) if step.is_reply), "") for turn in trace.turns]
    requests = [(ask, barcode) for ask, barcode in task.metadata["requests"]]
    return {"success": float(app.success(catalog, requests, replies))}


def _cold_start(
    out: Path, *, turns: int, start: str, seed: int, steps: int | None = None, progress: Progress | None = None
) -> Path:
    from cm2_agent.benchmarks.lending_desk.policy import ColdStart, cold_start

    if start not in STARTS:
        raise ValueError(f"no start {start!r}; there are {', '.join(STARTS)}")
    size = ColdStart() if steps is None else ColdStart(drill_steps=steps, careful_steps=steps, steps=steps)
    return cold_start(out, turns=turns, start=STARTS[start], seed=seed, size=size, progress=progress)
