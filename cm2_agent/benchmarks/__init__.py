"""Public benchmarks as environments to run agents in: real stateful tools, tasks, and the benchmark's own verdict."""

from cm2_agent.benchmarks.tau2 import Desk, Tau2Environment, World

__all__ = ["Desk", "Tau2Environment", "World"]
