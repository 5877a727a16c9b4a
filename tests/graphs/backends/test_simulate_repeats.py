"""The simulator repeats itself: by seed, through its caches, in another process; and what it may spend."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import BudgetExhausted, JudgeError, MissingExtra, ModelError, ToolError
from cm2_agent.graphs.backends.simulate import SimulatedTools
from cm2_agent.graphs.backends.simulation_cache import MemorySimulations
from cm2_agent.llm.limits import RateLimits
from cm2_agent.store import SQLStore
from cm2_agent.types.tool_calls import CallLog
from tests.chat_server import ChatServer
from tests.graphs.backends.simulators import (
    CANCEL,
    FREE,
    SHIPPED,
    TASK,
    always,
    call,
    closed,
    one_after_another,
    simulating,
)

__all__ = ["closed"]


@pytest.mark.parametrize("kind", ["memory", "sql"])
async def test_a_seed_repeats_itself(kind: str, store_url: str) -> None:
    number = iter(range(100))
    with (
        SQLStore(store_url) as store,
        ChatServer(lambda body: {"result": f"answer {next(number)}", "error": None}) as server,
    ):
        cache = MemorySimulations() if kind == "memory" else store.simulation_cache()

        async def answers_with(**options: Any) -> list[str]:
            simulator, log, out = simulating(server, cache=cache, **options), CallLog(), []
            for asked in (call(1), call(2), call(3, CANCEL), call(1)):
                answer = await simulator.answer(asked, log)
                log.add(asked, answer)
                out.append(str(answer.content))
            assert simulator.usage.calls + simulator.of_cache == 4
            return out

        first = await answers_with(seed=1)
        assert server.calls == 4
        assert await answers_with(seed=1) == first
        assert server.calls == 4  # what is known is not asked
        others = [
            await answers_with(seed=2),
            await answers_with(seed=1, shots=1),
            await answers_with(seed=1, settings={"temperature": 0.5}),
        ]
        assert server.calls == 16
        assert len({*first, *(answer for other in others for answer in other)}) == 16
        assert len(cache) == 16


_ELSEWHERE = """
import asyncio, sys
from cm2_agent.types.tool_calls import CallLog, ToolRequest
from cm2_agent.graphs.backends.simulate import SimulatedTools
from cm2_agent.llm.providers import openai_model
from cm2_agent.store import SQLStore
from cm2_agent.types.task import Task
task = Task.model_validate_json(sys.argv[1])
with SQLStore(sys.argv[2]) as store:
    unreachable = openai_model("http://127.0.0.1:9/v1", "stub")
    simulator = SimulatedTools(unreachable, task=task, seed=4, cache=store.simulation_cache())
    print(asyncio.run(simulator.answer(ToolRequest(tool=task.tools[0], arguments={"order_id": 7}), CallLog())).content)
"""


@pytest.mark.slow
async def test_another_process_gives_the_same_answer_without_a_model(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kept.db"
    with SQLStore(url) as store, ChatServer(always(SHIPPED)) as server:
        answer = await simulating(server, seed=4, cache=store.simulation_cache()).answer(call(), CallLog())
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _ELSEWHERE, TASK.model_dump_json(), url],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == answer.content


async def test_by_name_it_keeps_a_log_of_its_own() -> None:
    replies = one_after_another(
        SHIPPED, {"result": "gone", "error": None}, {"result": None, "error": "Error: no such order"}
    )
    with ChatServer(replies) as server:
        tools = simulating(server)
        assert await tools("get_order", {"order_id": 7}) == SHIPPED["result"]
        assert await tools("get_order", {"order_id": 7}) == SHIPPED["result"]
        assert await tools("cancel_order", {"order_id": 7}) == "gone"
        assert await tools("get_order", {"order_id": 9}) == {"error": "Error: no such order"}
        assert server.calls == 3
        assert (len(tools.log.entries), tools.log.writes_before) == (4, 1)
        with pytest.raises(ToolError, match="no tool 'refund'; its tools are cancel_order, get_order"):
            await tools("refund", {})
        with pytest.raises(ToolError, match="expected an object"):
            await tools("get_order", [7])


async def test_a_budget_stops_it_and_is_shared() -> None:
    limits = RateLimits(budget_calls=1, of="simulator")
    with ChatServer(always(SHIPPED)) as server:
        await simulating(server, limits=limits).answer(call(), CallLog())
        with pytest.raises(BudgetExhausted, match="the simulator's budget of 1 calls is spent"):
            await simulating(server, limits=limits).answer(call(), CallLog())
        assert server.calls == 1
        with pytest.raises(JudgeError, match=r"the price of 'openai:stub' is not known"):
            simulating(server, limits=RateLimits(budget_usd=1.0))
        priced = simulating(server, limits=RateLimits(budget_usd=1.0), price=FREE)
        await priced.answer(call(), CallLog())
        assert priced.usage.usd == 0.0


def test_the_version_names_what_could_change_an_answer() -> None:
    plain = SimulatedTools("test", task=TASK).version
    assert re.fullmatch(r"test:test;prompt=[0-9a-f]{8};settings=[0-9a-f]{8};shots=8;seed=0", plain)
    given: list[dict[str, Any]] = [{"seed": 1}, {"shots": 2}, {"settings": {"top_p": 0.5}}]
    others = [SimulatedTools("test", task=TASK, **one).version for one in given]
    assert len({plain, *others}) == 4
    assert SimulatedTools("test", task=TASK, timeout=1, retries=0, cache=MemorySimulations()).version == plain


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"re_asks": -1}, "re_asks is -1"),
        ({"shots": -1}, "shots is -1"),
        (
            {"task": TASK.model_copy(update={"metadata": {"shots": {"get_order": [4]}}})},
            "names the call 4 for 'get_order'; the task has 4",
        ),
        ({"task": TASK.model_copy(update={"metadata": {"shots": {"get_order": [True]}}})}, "names the call True"),
        ({"task": TASK.model_copy(update={"metadata": {"shots": {"get_order": "0"}}})}, "expected a list of indices"),
        ({"task": TASK.model_copy(update={"metadata": {"shots": [0]}})}, "expected {tool: [indices"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ToolError, match=re.escape(problem)):
        SimulatedTools("test", **{"task": TASK, **options})


def test_a_name_that_is_no_model_is_refused() -> None:
    with pytest.raises((ModelError, MissingExtra), match=r"simulator|pip install"):
        SimulatedTools("nobody:model", task=TASK)
