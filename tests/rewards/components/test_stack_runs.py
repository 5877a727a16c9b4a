"""A stack scores and gates real rollouts, and its groups come out of the store ready to be trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from cm2_agent import SQLStore, Stack, Task, run
from cm2_agent.errors import TaskError
from cm2_agent.graphs import agent
from cm2_agent.rewards.components.outcome import outcome
from cm2_agent.rewards.components.relative import relative
from cm2_agent.rewards.components.stack import gate
from cm2_agent.runner.rescore import score_groups
from cm2_agent.trainers.advantage import advantages
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.trace import Trace
from tests.tracing.apps import ScriptedModel

STRICT = Checklist(
    Item("greets", check={"reply_matches": "(?i)hello"}, turn=0, required_for_next_turn=True), name="strict"
)
TASKS = [Task(id=f"t{number}", turns=("Hi", "And?")) for number in range(2)]


class Drawn(ScriptedModel):
    """Greets every second time."""

    calls: list[int] = []  # noqa: RUF012

    def _next(self, messages: Any) -> AIMessage:
        self.calls.append(1)
        said = "Hello!" * (1 + len(self.calls) % 3) if len(self.calls) % 4 else "Go away"
        return AIMessage(said, response_metadata={"model_name": "drawn"})


def success(task: Task, world: Any, trace: Trace) -> dict[str, float | None]:
    return {"success": float(len(trace.turns) == 2)}


async def collect(store: SQLStore, stack: Stack, name: str) -> list[tuple[Trace, Any]]:
    graph = agent(Drawn(calls=[]), tools=[])
    return [
        one
        async for one in run(graph, TASKS, group=4, scorer=stack, store=store, verify=success, lockstep=True, name=name)
    ]


async def test_it_gates_and_scores_rollouts_with_their_outcomes(tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}")
    stack = Stack(STRICT, gate(outcome("success")))
    found = await collect(store, stack, "a")
    assert len(found) == 8
    shut = [score for trace, score in found if len(trace.turns) == 1]
    assert 0 < len(shut) < 8
    for trace, score in found:
        assert score.components == {"checklist": score.turns[0].reward, "success": trace.outcomes["success"]}
        assert score.reward == (score.turns[0].reward or 0) * (trace.outcomes["success"] or 0)
        assert trace.attributes["cm2.gate.checklist"] == STRICT.hash
        assert store.score(trace.id) == score
    groups = store.groups(checklist=STRICT)
    assert [len(group.rollouts) for group in groups] == [4, 4]
    assert {group.key["reward"] for group in groups} == {stack.version}
    assert any(
        one.scalar for group in groups for one in advantages([rollout.score for rollout in group.rollouts]).rollouts
    )


async def test_a_scorer_brings_its_own_checklist(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="give them to the scorer"):
        run(agent(Drawn(calls=[]), tools=[]), TASKS, scorer=Stack(STRICT), checklist=STRICT)


async def test_rewards_that_compare_are_given_stored_groups(tmp_path: Path) -> None:
    asked: list[int] = []

    async def longest(prompt: str) -> str:
        attempts = re.findall(r"<attempt-(\w+) (\w+)>\n(.*?)\n</attempt-\1 \2>", prompt, re.DOTALL)
        asked.append(len(attempts))
        return json.dumps({"scores": [{"id": name, "score": min(1.0, len(body) / 1000)} for name, _, body in attempts]})

    store = SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}")
    stack = Stack(STRICT, relative(longest, version="1"))
    alone = await collect(store, stack, "a")
    assert {score.null_reason for _, score in alone} == {"component: relative"}
    assert asked == []
    found = [one async for one in score_groups(store.traces(), stack, store=store)]
    assert asked == [4, 4]
    assert {trace.id for trace, _ in found} == {trace.id for trace, _ in alone}
    for trace, score in found:
        parts = [value for value in score.components.values() if value is not None]
        assert set(score.components) == {"checklist", "relative"}
        assert score.reward == pytest.approx(sum(parts) / 2)
        assert store.score(trace.id) == score
    assert all(len(group.rollouts) == 4 for group in store.groups(reward=stack.version))
