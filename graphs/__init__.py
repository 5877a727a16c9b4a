"""The agent's tool loop and the dialogues it is run in, as LangGraph state machines."""

from cm2_agent.graphs.agent import agent
from cm2_agent.graphs.dialogue import End, converse
from cm2_agent.graphs.tools import RealToolGuard, tools_of

__all__ = ["End", "RealToolGuard", "agent", "converse", "tools_of"]
