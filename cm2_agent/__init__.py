"""CM2: an agent SDK with pluggable checklist rewards. The face: what users type (heavy parts are imported when first used)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.task import Task, load_tasks, save_tasks
from cm2_agent.types.trace import Run, Trace
from cm2_agent.types.view import View

if TYPE_CHECKING:
    from cm2_agent.online.watch import as_agent, watch
    from cm2_agent.online.guard import guard
    from cm2_agent.models.local import LocalChatModel
    from cm2_agent.rewards.judges.llm_judge import LLMJudge
    from cm2_agent.rewards.components.stack import Stack
    from cm2_agent.runner.run import run, score_traces
    from cm2_agent.store import SQLStore
    from cm2_agent.trainers.grpo import GRPO
    from cm2_agent.trainers.sft import SFT

_LAZY = {
    "GRPO": "cm2_agent.trainers.grpo",
    "SFT": "cm2_agent.trainers.sft",
    "LLMJudge": "cm2_agent.rewards.judges.llm_judge",
    "LocalChatModel": "cm2_agent.models.local",
    "SQLStore": "cm2_agent.store",
    "Stack": "cm2_agent.rewards.components.stack",
    "as_agent": "cm2_agent.online.watch",
    "guard": "cm2_agent.online.guard",
    "run": "cm2_agent.runner.run",
    "score_traces": "cm2_agent.runner.run",
    "watch": "cm2_agent.online.watch",
}

__version__ = "0.1.0"

__all__ = [
    "GRPO",
    "SFT",
    "Checklist",
    "Item",
    "LLMJudge",
    "LocalChatModel",
    "Run",
    "SQLStore",
    "Score",
    "Stack",
    "Task",
    "Trace",
    "Verdict",
    "View",
    "as_agent",
    "guard",
    "load_tasks",
    "run",
    "save_tasks",
    "score_traces",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
