"""Desks made once, and dialogues with them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from cm2_agent.benchmarks import Desk
from cm2_agent.benchmarks.tau2.world import Domain, World
from cm2_agent.graphs import agent
from cm2_agent.runner.run import run
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.benchmarks.tau2.policies import PolicyModel


@lru_cache
def desk_of(domain: Domain) -> Desk:
    return Desk(domain)


async def played(desk: Desk, tasks: list[Task], policy: str) -> list[tuple[Task, Trace, Score]]:
    model = PolicyModel.of(policy, tasks)
    return await rolled(desk, tasks, model)


async def rolled(desk: Desk, tasks: list[Task], model: Any) -> list[tuple[Task, Trace, Score]]:
    graph = agent(model, desk.tools(), context_schema=World)
    known = {task.id: task for task in tasks}
    found = []
    async for trace, score in run(graph, tasks, context=desk.world, verify=desk.verify, allow_real=desk.names):
        assert score is not None
        found.append((known[str(trace.task_id)], trace, score))
    return found


def official(found: Iterable[tuple[Task, Trace, Score]]) -> list[float | None]:
    return [trace.outcomes["official"] for _, trace, _ in found]
