"""The agent's tool loop, its tools and users, and the dialogues they have, as LangGraph state machines."""

import importlib
from typing import TYPE_CHECKING, Any

from cm2_agent.graphs import tools
from cm2_agent.graphs.agent import agent, agents
from cm2_agent.graphs.dialogue import End, Limits, converse
from cm2_agent.graphs.tools import (
    FunctionTools,
    HybridTools,
    RealToolGuard,
    Recorder,
    ReplayTools,
    declared,
    load_recording,
    switchable,
    switched,
    tools_of,
)

if TYPE_CHECKING:
    from cm2_agent.graphs.tools import McpTools, SimulatedTools
    from cm2_agent.graphs.users import LLMUser, ScriptedUser

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
