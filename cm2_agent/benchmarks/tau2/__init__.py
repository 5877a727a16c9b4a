"""Desks of public benchmarks as worlds to run agents in: real stateful tools, tasks, and the benchmark's own
verdict."""

from cm2_agent.benchmarks.tau2.environment import Desk

__all__ = ["Desk"]
