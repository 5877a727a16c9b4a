"""Tools behind a switch: the same graph with real, recorded, replayed or simulated tools (what is heavy is imported when first used)."""

import importlib
from typing import TYPE_CHECKING, Any

from cm2_agent.graphs.tools.backends import BACKENDS, TOOLS, Answering, Backend, Backends
from cm2_agent.graphs.tools.declared import DeclaredTool, declared
from cm2_agent.graphs.tools.faults import Faults
from cm2_agent.graphs.tools.functions import FunctionTools
from cm2_agent.graphs.tools.guarding import RealToolGuard
from cm2_agent.graphs.tools.hybrid import HybridTools
from cm2_agent.graphs.tools.journal import Answer, Call, Journal
from cm2_agent.graphs.tools.recording import Recorder, load_recording
from cm2_agent.graphs.tools.replay import ReplayTools
from cm2_agent.graphs.tools.seeing import refuse_unnamed, tools_of, unseen_tools
from cm2_agent.graphs.tools.switch import switched
from cm2_agent.graphs.tools.switchable import switchable

if TYPE_CHECKING:
    from cm2_agent.graphs.tools.langchain_middleware import ToolSwitch
    from cm2_agent.graphs.tools.mcp import McpTools
    from cm2_agent.graphs.tools.simulated import SimulatedTools

_LAZY = {"McpTools": "mcp", "SimulatedTools": "simulated", "ToolSwitch": "langchain_middleware"}

__all__ = [
    "BACKENDS",
    "TOOLS",
    "Answer",
    "Answering",
    "Backend",
    "Backends",
    "Call",
    "DeclaredTool",
    "Faults",
    "FunctionTools",
    "HybridTools",
    "Journal",
    "McpTools",
    "RealToolGuard",
    "Recorder",
    "ReplayTools",
    "SimulatedTools",
    "ToolSwitch",
    "declared",
    "load_recording",
    "refuse_unnamed",
    "switchable",
    "switched",
    "tools_of",
    "unseen_tools",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
