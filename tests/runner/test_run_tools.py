"""Whole runs whose tools fail for reasons that are not the agent's, and runs whose users are simulated: what they are
worth."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool

from cm2_agent import Checklist, Item, RolloutLimits, SQLStore, run
from cm2_agent.errors import ChecklistError, TaskError
from cm2_agent.graphs import FunctionTools, McpTools, agent
from cm2_agent.graphs.backends.faults import Faults
from cm2_agent.graphs.interception.discovery import undiscovered_tools
from cm2_agent.llm.providers import openai_model
from cm2_agent.types.run_attributes import CUT, FAULTS, SIMULATOR, TOOL_BACKENDS, USER
from cm2_agent.types.task import Persona, RecordedCall, Task
from tests.chat_server import ChatServer
from tests.tracing.apps import ScriptedModel

SERVER = str(Path(__file__).resolve().parents[1] / "graphs" / "tools" / "mcp_server.py")
ELSEWHERE = StructuredTool.from_function(lambda: "x", name="elsewhere", description="Belongs to nobody here.")
REPLIES = Checklist(Item("replies", check={"replied": True}), name="replies")
BLOCK = Checklist(Item("thanks", check={"replied": True}, turn="trace"), name="block")


def calling(name: str, **arguments: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": "c0", "type": "tool_call"}])


def model(*script: AIMessage) -> ScriptedModel:
    return ScriptedModel(script=[*script, AIMessage("done")], per_turn=True)


async def results(running: Any) -> list[Any]:
    return [one async for one in running]


async def test_a_server_that_dies_in_a_run_costs_its_dialogue_the_reward(tmp_path: Path) -> None:
    """Each dialogue's server is a world of its own: opened, and closed when it has died."""

    class Worlds:
        opened = closed = 0

        @asynccontextmanager
        async def world(self, task: Task) -> AsyncIterator[Any]:
            self.opened += 1
            try:
                yield {"desk": self.opened}
            finally:
                self.closed += 1

    worlds = Worlds()
    async with McpTools.stdio(sys.executable, SERVER, env={"SHOP_TOKEN": "t"}) as tools:
        graph = agent(model(calling("die")), tools)
        assert undiscovered_tools(graph) == {}  # what lies behind a session is no tool of the graph's: ELSEWHERE, say
        with SQLStore(f"sqlite:///{tmp_path / 'mcp.db'}") as store:
            found = await results(
                run(
                    graph,
                    [Task(id="t", turns=("x", "y"))],
                    group=2,
                    checklist=REPLIES,
                    store=store,
                    context=worlds.world,
                    allow_real=[tool.name for tool in tools],
                    concurrency=1,
                )
            )
            assert len(list(store.traces())) == 2
    for trace, score in found:
        assert trace.failure is not None
        assert trace.failure.kind == "ToolError"
        assert "MCP server" in trace.failure.message
        assert (trace.runs[0].tools[0].backend, score.reward, len(trace.runs)) == ("real", None, 1)
        assert "ToolError" in (trace.runs[0].tools[0].error or "")
    assert (worlds.opened, worlds.closed) == (2, 2)


async def test_a_world_that_cannot_be_opened_ends_its_own_dialogue_alone() -> None:
    @asynccontextmanager
    async def world(task: Task) -> AsyncIterator[Any]:
        if task.id == "bad":
            raise ConnectionError("no database")
        yield {"desk": task.id}

    tasks = [Task(id="bad", turns=("x",)), Task(id="good", turns=("x",))]
    running = run(agent(model(), []), tasks, checklist=REPLIES, context=world)
    found = {trace.task_id: (trace, score) for trace, score in await results(running)}
    assert found["good"][1].reward == 1.0
    trace, score = found["bad"]
    assert score.reward is None
    assert trace.failure is not None
    assert (trace.failure.kind, "no database" in trace.failure.message) == ("ToolError", True)


async def test_a_result_that_is_not_json_costs_its_dialogue_the_reward() -> None:
    def opened(path: str) -> Any:
        """Open a file."""
        return object()

    graph = agent(model(calling("opened", path="x")), FunctionTools(opened))
    ((trace, score),) = await results(
        run(graph, [Task(id="t", turns=("x",))], checklist=REPLIES, allow_real=["opened"])
    )
    assert score.reward is None
    assert trace.failure is not None
    assert trace.failure.kind == "ToolError"
    assert "opened" in trace.failure.message
    assert "object" in trace.failure.message


async def test_faults_are_the_same_for_every_rollout_and_stand_in_the_trace() -> None:
    def look(key: int) -> str:
        """Look a key up."""
        raise AssertionError("called")

    graph = agent(model(calling("look", key=1), calling("look", key=1), calling("look", key=1)), FunctionTools(look))
    recorded = RecordedCall(name="look", arguments={"key": 1}, result="a value that is long enough")
    tasks = [Task(id=f"t{number}", turns=("x",), recorded=(recorded,)) for number in range(6)]
    faults = Faults(timeout=0.2, error=0.2, truncated=0.2, seed=3)
    found = await results(run(graph, tasks, group=3, tools="replay", faults=faults, checklist=REPLIES))
    met: dict[str, set[tuple[Any, ...]]] = {}
    for trace, _ in found:
        met.setdefault(str(trace.task_id), set()).add(tuple(tool.fault for tool in trace.runs[0].tools))
        assert trace.attributes[FAULTS] == faults.version
        assert json.loads(trace.attributes[TOOL_BACKENDS]) == {"look": "replay"}
        assert SIMULATOR not in trace.attributes
    assert all(len(rollouts) == 1 for rollouts in met.values())
    kinds = {fault for rollouts in met.values() for one in rollouts for fault in one}
    assert None in kinds
    assert len(kinds) > 2


async def test_a_simulated_user_speaks_until_it_is_done() -> None:
    said = iter(["Where is order 7?", "And order 8?", "Thanks. ###STOP###"])
    task = Task(id="p", persona=Persona(persona="A hurried customer.", goal="Know where orders 7 and 8 are."))
    with ChatServer(lambda body: next(said)) as server:
        user = openai_model(server.base_url, "stub")
        ((trace, score),) = await results(run(agent(model(), []), [task], user=user, checklist=BLOCK))
    assert [turn.user[0].text for turn in trace.turns] == ["Where is order 7?", "And order 8?", "Thanks."]
    assert all(turn.steps for turn in trace.turns)
    assert CUT not in trace.attributes
    assert "stub" in trace.attributes[USER]
    assert score.reward == 1.0
    assert trace.failure is None


async def test_limits_cut_a_user_who_does_not_stop_and_are_no_failure() -> None:
    with ChatServer(lambda body: "Tell me more.") as server:
        user = openai_model(server.base_url, "stub")
        tasks = [Task(id="p", persona="talks on", max_turns=3)]
        ((trace, score),) = await results(run(agent(model(), []), tasks, user=user, checklist=BLOCK))
        assert (len(trace.turns), trace.attributes[CUT], trace.failure) == (3, "turns", None)
        ((trace, score),) = await results(
            run(agent(model(), []), tasks, user=user, checklist=BLOCK, limits=RolloutLimits(max_turns=1))
        )
    assert (len(trace.turns), trace.attributes[CUT]) == (1, "turns")
    assert score.reward is not None


async def test_a_user_that_fails_is_no_doing_of_the_agents() -> None:
    with ChatServer(lambda body: "") as server:
        task = Task(id="p", persona="says nothing")
        user = openai_model(server.base_url, "stub")
        ((trace, score),) = await results(run(agent(model(), []), [task], user=user, checklist=BLOCK))
    assert score.reward is None
    assert trace.failure is not None
    assert "user" in trace.failure.message


async def test_who_may_train_on_simulated_users_is_asked_before_the_run() -> None:
    task = Task(id="p", persona="a customer")
    with pytest.raises(TaskError, match="name user=MODEL"):
        run(agent(model(), []), [task], checklist=BLOCK)
    with ChatServer(lambda body: "x") as server, pytest.raises(ChecklistError, match="replies"):
        run(agent(model(), []), [task], user=openai_model(server.base_url, "stub"), checklist=REPLIES)
    assert server.calls == 0
