"""The collector against LangGraph: the same dialogues, token ids, outcomes and scores, for the same seeds."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm2_agent.benchmarks.lending_desk.desk import lending_desk
from cm2_agent.compare.collector import collect
from cm2_agent.errors import TaskError
from cm2_agent.models.local import LocalChatModel
from cm2_agent.runner.run import run
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.group import group_key
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.compare.small_policies import hasty_policy

DESK = lending_desk()
TASKS = DESK.training(0, 3, 5)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hasty_policy(tmp_path_factory.mktemp("policy") / "hasty")


def by_langgraph(model: LocalChatModel, tasks: list[Task], *, group: int, seed: int) -> list[tuple[Trace, Score]]:
    async def drain() -> list[Any]:
        setting: dict[str, Any] = {"checklist": DESK.checklist, "context": DESK.open, "verify": DESK.verify}
        setting |= {"name": "round", "allow_real": [tool.name for tool in DESK.tools]}
        found = run(DESK.graph(model), tasks, group=group, seed=seed, lockstep=True, concurrency=99, **setting)
        return [result async for result in found]

    return asyncio.run(drain())


def words(trace: Trace) -> list[JSON]:
    """What was said and called, without the ids of the calls, which each path derives in its own way."""
    messages = [message.to_json() for message in trace.messages]
    for message in messages:
        for part in message["parts"]:
            part.pop("id", None)
    return messages


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_dialogues_ids_and_scores_are_those_of_the_langgraph_path(policy: Path, temperature: float) -> None:
    model = LocalChatModel.load(policy, temperature=temperature, max_tokens=32)
    theirs = by_langgraph(model, TASKS, group=3, seed=7)
    groups = collect(DESK, model, TASKS, group=3, seed=7, name="round")
    ours = [rollout for group in groups for rollout in group.rollouts]
    assert len(ours) == len(theirs) == 15
    keys = {group.task_id: group.key for group in groups}
    seen: Counter[str] = Counter()
    for mine, (trace, score) in zip(ours, theirs, strict=True):
        assert mine.trace.id == trace.id
        assert mine.trace.attributes == trace.attributes
        assert words(mine.trace) == words(trace)
        assert len(mine.trace.runs) == len(trace.runs)
        for own, call in zip(mine.trace.calls, trace.calls, strict=True):
            assert list(own.prompt_ids or ()) == list(call.prompt_ids or ())
            assert list(own.completion_ids or ()) == list(call.completion_ids or ())
            assert np.allclose(own.logprobs or (), call.logprobs or (), atol=1e-4)
            assert (own.sampling, own.usage, own.tools) == (call.sampling, call.usage, call.tools)
            assert (own.finish_reason, own.message) == (call.finish_reason, call.message)
            assert own.untrainable == call.untrainable
        assert mine.trace.outcomes == trace.outcomes
        assert replace(mine.score, usage={}) == replace(score, usage={})
        assert keys[str(trace.task_id)] == group_key(trace, score.reward_version)
        uses = [use for step in trace.steps for use in step.tool_uses]
        mine_uses = [use for step in mine.trace.steps for use in step.tool_uses]
        assert [use.status for use in mine_uses] == [use.status for use in uses]
        seen.update(f"call {use.status}" for use in uses)
        seen.update(call.finish_reason or "" for call in trace.calls)
    assert min(seen["call ok"], seen["stop"], seen["tool_calls"]) > 0  # a test in which nothing happens shows nothing
    if temperature == 1.0:
        assert seen["call failed"]


def test_batches_of_any_size_and_order_hold_the_same_dialogues(policy: Path) -> None:
    def ids(tasks: list[Task], at_once: int) -> dict[str, list[list[int]]]:
        groups = collect(DESK, policy, tasks, group=2, seed=1, name="round", at_once=at_once)
        rollouts = [rollout.trace for group in groups for rollout in group.rollouts]
        return {trace.id: [list(call.completion_ids or ()) for call in trace.calls] for trace in rollouts}

    assert ids(TASKS[:3], 512) == ids(TASKS[2::-1], 4)


def test_a_model_that_reads_too_little_ends_its_dialogues_as_langgraph_does(tmp_path: Path) -> None:
    model = LocalChatModel.load(hasty_policy(tmp_path / "short", steps=8, context=90), max_tokens=32)
    theirs = by_langgraph(model, TASKS[:2], group=2, seed=0)
    ours = [rollout for group in collect(DESK, model, TASKS[:2], group=2, name="round") for rollout in group.rollouts]
    assert "context" in {trace.attributes.get("cm2.cut") for trace, _ in theirs}
    for mine, (trace, score) in zip(ours, theirs, strict=True):
        assert words(mine.trace) == words(trace)
        assert mine.trace.attributes == trace.attributes
        assert (mine.score.turns, mine.score.reward) == (score.turns, score.reward)


def test_what_it_cannot_play_is_refused(policy: Path) -> None:
    gated = Checklist(Item("finds", check={"called": "find_copy"}, required_for_next_turn=True), name="gated")
    with pytest.raises(TaskError, match="required for the next turn"):
        collect(replace(DESK, checklist=gated), policy, TASKS[:1], name="round")
    with pytest.raises(TaskError, match="listed twice"):
        collect(DESK, policy, [TASKS[0], TASKS[0]], name="round")
