"""Tools behind a switch: the same graph with real, recorded, replayed or simulated tools."""

from cm2_agent.graphs.tools.backends import BACKENDS, TOOLS, Answering, Backend, Backends
from cm2_agent.graphs.tools.guarding import RealToolGuard
from cm2_agent.graphs.tools.journal import Answer, Call, Journal
from cm2_agent.graphs.tools.seeing import refuse_unnamed, tools_of, unseen_tools
from cm2_agent.graphs.tools.switch import switched
from cm2_agent.graphs.tools.switchable import switchable

__all__ = [
    "BACKENDS",
    "TOOLS",
    "Answer",
    "Answering",
    "Backend",
    "Backends",
    "Call",
    "Journal",
    "RealToolGuard",
    "refuse_unnamed",
    "switchable",
    "switched",
    "tools_of",
    "unseen_tools",
]
