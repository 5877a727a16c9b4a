"""Tools behind a switch: the same graph with real, recorded, replayed or simulated tools."""

from cm2_agent.graphs.tools.backends import BACKENDS, Answering, Backend
from cm2_agent.graphs.tools.guarding import RealToolGuard
from cm2_agent.graphs.tools.journal import Answer, Call, Journal
from cm2_agent.graphs.tools.seeing import refuse_unnamed, tools_of

__all__ = ["BACKENDS", "Answer", "Answering", "Backend", "Call", "Journal", "RealToolGuard", "refuse_unnamed", "tools_of"]
