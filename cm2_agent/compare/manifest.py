"""The manifest of a comparison: where each number of it comes from, so that anybody can make the number again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from cm2_agent.benchmarks.training_desk import TrainingDesk
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.task import Task

from .experiment import Cell, Experiment

PACKAGES = ("torch", "transformers", "trl", "numpy")


def provenance(desk: TrainingDesk, experiment: Experiment, cell: Cell, tasks: Sequence[Task]) -> dict[str, Any]:
    """Where a cell's numbers come from: code, reward, tasks, seeds, the grid and the machine. `tasks` are those that it
    is evaluated on."""
    training = desk.training(1000 * cell.sampling + 1, experiment.turns, experiment.tasks)
    return {
        "commit": commit(),
        "code": code(),
        "version": metadata.version("cm2-agent"),
        "desk": desk.name,
        "experiment": experiment.hash,
        "checklist": desk.checklist.hash,
        "reward": ChecklistScorer(desk.checklist).version,
        "training_tasks": content_hash([task.to_json() for task in training]),
        "evaluation_tasks": content_hash([task.to_json() for task in tasks]),
        "seeds": {"cold_start": cell.cold_start, "sampling": cell.sampling},
        "learning_rate": cell.learning_rate,
        "grid": experiment.grid(cell.arm),
        "hardware": hardware(),
    }


@cache
def code() -> str:
    """A hash of the package's own sources: what changed without a commit changes it too."""
    package = Path(__file__).resolve().parents[1]
    wings = [path.resolve() for path in sorted(package.iterdir()) if path.is_dir()]
    files = {str(path.relative_to(wing.parent)): path for wing in wings for path in sorted(wing.rglob("*.py"))}
    return content_hash({name: content_hash(path.read_text(encoding="utf-8")) for name, path in files.items()})


@cache
def commit() -> str | None:
    """The commit that is checked out; None where the package is installed without its repository."""
    here = Path(__file__).resolve()
    mark = next((folder / ".git" for folder in here.parents if (folder / ".git").exists()), None)
    if mark is None:
        return None
    # in a further worktree .git is a file that names the folder
    folder = mark if mark.is_dir() else Path(mark.read_text(encoding="utf-8").partition(": ")[2].strip())
    head = (folder / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    shared = folder / "commondir"
    common = (folder / shared.read_text(encoding="utf-8").strip()) if shared.exists() else folder
    if (common / name).exists():
        return (common / name).read_text(encoding="utf-8").strip()
    packed = common / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.exists() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)


@cache
def hardware() -> dict[str, Any]:
    """The machine as far as numbers hang on it."""
    import torch

    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def manifest(desk: TrainingDesk, experiment: Experiment, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row for each finished cell: its provenance, tokens, cost and figures."""
    return {
        "desk": desk.name,
        "experiment": experiment.to_json(),
        "rows": [
            {
                "key": key,
                "cell": result["cell"],
                "provenance": result["provenance"],
                "figures": comparable(result),
                "cpu_seconds": result["cpu_seconds"],
            }
            for key, result in sorted(results.items())
        ],
    }


def comparable(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the same code must give again on the same machine: everything but times."""
    return {name: result[name] for name in ("before", "rounds", "after", "sampled_tokens", "trained_tokens")}
