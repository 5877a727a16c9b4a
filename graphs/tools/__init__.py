"""Tools behind a switch: the same graph with real, recorded, replayed or simulated tools (what is heavy is imported when first used)."""

import importlib
from typing import TYPE_CHECKING, Any

from ..backends.backends import BACKENDS, TOOLS, Answering, Backend, Backends
from .declared import DeclaredTool, declared
from ..backends.faults import Faults
from .functions import FunctionTools
from ..interception.real_tool_guard import RealToolGuard
from ..backends.hybrid import HybridTools
from ..backends.calls import Answer, Call, Journal
from ..backends.record import Recorder, load_recording
from ..backends.replay import ReplayTools
from ..interception.discovery import refuse_unnamed, tools_of, unseen_tools
from ..interception.tool_node import switched
from ..interception.decorator import switchable

if TYPE_CHECKING:
    from ..interception.langchain_middleware import ToolSwitch
    from .mcp import McpTools
    from ..backends.simulate import SimulatedTools

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
