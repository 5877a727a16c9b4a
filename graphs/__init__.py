"""The agent's tool loop, its tools and users, and the dialogues they have, as LangGraph state machines."""

import importlib
from typing import TYPE_CHECKING, Any

from . import tools
from .agent import agent, agents
from .conversation import End, Limits, converse
from .tools.functions import FunctionTools
from .backends.hybrid import HybridTools
from .interception.real_tool_guard import RealToolGuard
from .backends.record import Recorder, load_recording
from .backends.replay import ReplayTools
from .tools.declared import declared
from .interception.decorator import switchable
from .interception.tool_node import switched
from .interception.discovery import tools_of

if TYPE_CHECKING:
    from .tools.mcp import McpTools
    from .backends.simulate import SimulatedTools
    from .users import LLMUser, ScriptedUser

_TOOLS = ("McpTools", "SimulatedTools")
_USERS = ("LLMUser", "ScriptedUser")

__all__ = [
    "End",
    "FunctionTools",
    "HybridTools",
    "LLMUser",
    "Limits",
    "McpTools",
    "RealToolGuard",
    "Recorder",
    "ReplayTools",
    "ScriptedUser",
    "SimulatedTools",
    "agent",
    "agents",
    "converse",
    "declared",
    "load_recording",
    "switchable",
    "switched",
    "tools_of",
]


def __getattr__(name: str) -> Any:
    if name not in (*_TOOLS, *_USERS):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = tools if name in _TOOLS else importlib.import_module(f"{__name__}.users")
    return getattr(room, name)
