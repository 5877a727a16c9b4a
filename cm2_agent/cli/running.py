"""`cm2 run`: an agent on tasks, every dialogue stored and scored."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import math
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, answer, open_store, progress
from cm2_agent.cli.scoring import named
from cm2_agent.errors import TaskError

if TYPE_CHECKING:
    from types import ModuleType

    from cm2_agent.score import Score
    from cm2_agent.trace import Trace


def register(app: typer.Typer) -> None:
    app.command("run", help="Run an agent G times on every task; store and score each dialogue.")(run_tasks)


def run_tasks(
    tasks: Annotated[Path, typer.Argument(metavar="TASKS.jsonl", help="One task a line.")],
    agent: Annotated[str, typer.Option("--agent", metavar="MODULE:GRAPH", help="A LangGraph graph: module:graph, or file.py:graph.")],
    group: Annotated[int, typer.Option("--group", min=1, help="Rollouts a task.")] = 1,
    allow_real: Annotated[
        list[str] | None, typer.Option("--allow-real", metavar="NAME", help="A real tool that may be called; repeatable.")
    ] = None,
    checklist: Annotated[Path | None, typer.Option("--checklist", metavar="FILE", help="Left out: each task's own checklist.")] = None,
    checks: Annotated[str | None, typer.Option("--checks", metavar="MODULE", help="The checklist's functions.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The run's name; under it, finished dialogues are not run again.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Dialogues at a time.")] = 64,
    max_steps: Annotated[int, typer.Option("--max-steps", min=1, help="Assistant messages a turn at most.")] = 24,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.runner import run
    from cm2_agent.task import load_tasks

    listed = load_tasks(tasks)
    _, chosen = named(checklist, checks)
    graph = load_graph(agent)
    options: dict[str, Any] = {
        "group": group, "checklist": chosen, "allow_real": allow_real or (), "concurrency": concurrency, "max_steps": max_steps,
        "seed": seed, "name": name,
    }  # fmt: skip
    run(graph, listed, **options)  # refuses what cannot be run, before there is a store
    with open_store(store, create=True) as opened:
        result = asyncio.run(_finished(run(graph, listed, store=opened, **options), len(listed) * group))
    answer(result, as_json=as_json)


def load_graph(spec: str) -> Any:
    """The graph that `module.name:attribute` or `file.py:attribute` names; a function without parameters is called for it. The current
    folder is on the path. Raises TaskError."""
    where, colon, attribute = spec.rpartition(":")
    if not colon or not where or not attribute:
        raise TaskError(f"agent {spec!r}; expected MODULE:GRAPH, such as my_app.agent:graph or agent.py:graph")
    module = _module(where, spec)
    if not hasattr(module, attribute):
        public = ", ".join(name for name in vars(module) if not name.startswith("_")) or "nothing public"
        raise TaskError(f"agent {spec!r}: {where} has no {attribute!r}; it holds {public}")
    graph = getattr(module, attribute)
    if not hasattr(graph, "ainvoke") and callable(graph):
        try:
            graph = graph()
        except Exception as error:  # the user's own function
            raise TaskError(f"agent {spec!r}: {attribute}() raised {type(error).__name__}: {error}") from error
    if not hasattr(graph, "ainvoke"):
        raise TaskError(f"agent {spec!r} is a {type(graph).__name__}; expected a compiled LangGraph graph, or a function that returns one")
    return graph


def _module(where: str, spec: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where)
        if not path.is_file():
            raise TaskError(f"agent {spec!r}: there is no file {where}")
        found = importlib.util.spec_from_file_location(path.stem, path)
        if found is None or found.loader is None:
            raise TaskError(f"agent {spec!r}: {where} cannot be imported as a Python module")
        module = importlib.util.module_from_spec(found)
        sys.modules[path.stem] = module
        found.loader.exec_module(module)
        return module
    except TaskError:
        raise
    except Exception as error:  # an import runs the user's code, which may raise anything
        raise TaskError(f"agent {spec!r}: {where} cannot be imported: {type(error).__name__}: {error}") from error


async def _finished(results: AsyncIterator[tuple[Trace, Score | None]], total: int) -> Mapping[str, Any]:
    rewards: list[float] = []
    dialogues = failed = 0
    with progress("running", total) as advance:
        async for trace, score in results:
            dialogues += 1
            failed += trace.failure is not None
            if score is not None and score.reward is not None:
                rewards.append(score.reward)
            advance()
    mean = math.fsum(rewards) / len(rewards) if rewards else None  # whatever the order in which they came
    return {
        "dialogues": dialogues, "failed": failed, "scored": len(rewards), "unscored": dialogues - len(rewards), "mean_reward": mean,
    }  # fmt: skip


