"""What conducting dialogues costs: 256 of three turns (7 model and 4 tool calls in all), 64 at a time, traced and
stored.

`python -m tests.bench.bench_run` prints one JSON line. `ideal_share` is the time that 256 dialogues would take if
nothing but the stubs took any, as a share of what they took (model 2 s, tool 0.2 s, over loopback HTTP). `cpu_ratio` is
the CPU of our run over that of the same graph driven bare, its turns one after another, in interleaved pieces (50 and
20 ms); `cpu_ratio_resumable` the same for a named run, which keeps a checkpoint after each turn. CPU is this process's
alone; the stubs run in another."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool

from cm2_agent.graphs import agent
from cm2_agent.models.openai import openai_compatible
from cm2_agent.runner.run import run
from cm2_agent.store import SQLStore
from cm2_agent.types.task import Task

MODEL_CALLS, TOOL_CALLS, AT_A_TIME = 7, 4, 64
TURNS = ("Look the first two up, please.", "And the next?", "And the last one, thank you.")


@contextmanager
def stubs(model: float, tool: float) -> Iterator[str]:
    """The stub server's address."""
    command = [sys.executable, "-m", "tests.bench.stub_server", str(model), str(tool)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def desk(url: str) -> Iterator[Any]:
    """The agent whose model and tool are the stubs."""
    client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None), timeout=120)

    async def look(key: int) -> Any:
        """Look a key up."""
        return (await client.post(f"{url}/look", json={"key": key})).json()

    tool = StructuredTool.from_function(coroutine=look, name="look")
    unlimited = httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None), timeout=120
    )
    model = openai_compatible(f"{url}/v1", "stub", timeout=120, max_retries=0, http_async_client=unlimited)
    yield agent(model, [tool])


def tasks(count: int, name: str) -> list[Task]:
    return [Task(id=f"{name}-{number}", turns=TURNS) for number in range(count)]


async def ours(graph: Any, count: int, store: SQLStore, name: str, resumable: bool = False) -> None:
    done = 0
    options: dict[str, Any] = {"name": name} if resumable else {}
    async for trace, _ in run(
        graph, tasks(count, name), store=store, allow_real=["look"], concurrency=AT_A_TIME, **options
    ):
        assert trace.failure is None, trace.failure
        assert (len(trace.turns), len(trace.calls)) == (3, MODEL_CALLS)
        done += 1
    assert done == count


async def bare(graph: Any, count: int) -> None:
    """The same dialogues as a loop without us would drive them."""
    free = asyncio.Semaphore(AT_A_TIME)

    async def dialogue() -> None:
        async with free:
            messages: list[Any] = []
            for words in TURNS:
                messages = (await graph.ainvoke({"messages": [*messages, HumanMessage(words)]}))["messages"]
            assert len(messages) == 3 + MODEL_CALLS + TOOL_CALLS

    await asyncio.gather(*(dialogue() for _ in range(count)))


async def cpu(work: Any) -> float:
    began = time.process_time()
    await work
    return time.process_time() - began


async def waiting(count: int, model: float, tool: float, store: SQLStore) -> dict[str, Any]:
    """Wall time against the ideal."""
    ideal = math.ceil(count / AT_A_TIME) * (MODEL_CALLS * model + TOOL_CALLS * tool)
    with stubs(model, tool) as url, desk(url) as graph:
        await ours(graph, 2, store, "warm")
        began, cpu_began = time.perf_counter(), time.process_time()
        await ours(graph, count, store, "waiting")
        wall, used = time.perf_counter() - began, time.process_time() - cpu_began
    return {
        "ideal_s": round(ideal, 2),
        "wall_s": round(wall, 2),
        "ideal_share": round(ideal / wall, 3),
        "waiting_cpu_s": round(used, 2),
    }


async def working(count: int, pieces: int, model: float, tool: float, store: SQLStore) -> dict[str, Any]:
    """CPU against the bare graph's."""
    each = count // pieces
    times: dict[str, list[float]] = {"bare": [], "ours": [], "resumable": []}
    with stubs(model, tool) as url, desk(url) as graph:
        await bare(graph, AT_A_TIME)
        await ours(graph, AT_A_TIME, store, "warm-up", resumable=True)
        for piece in range(pieces):
            kinds = list(times)
            for kind in kinds[piece % 3 :] + kinds[: piece % 3]:
                work = (
                    bare(graph, each)
                    if kind == "bare"
                    else ours(graph, each, store, f"{kind}-{piece}", resumable=kind == "resumable")
                )
                times[kind].append(1000 * await cpu(work) / each)
    median = {kind: statistics.median(values) for kind, values in times.items()}
    return {
        "bare_cpu_ms": round(median["bare"], 2),
        "cpu_ms": round(median["ours"], 2),
        "resumable_cpu_ms": round(median["resumable"], 2),
        "cpu_ratio": round(median["ours"] / median["bare"], 3),
        "cpu_ratio_resumable": round(median["resumable"] / median["bare"], 3),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=256)
    parser.add_argument("--pieces", type=int, default=4, help="into which the CPU comparison is cut")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, SQLStore(f"sqlite:///{Path(folder) / 'run.db'}") as store:
        slow = await waiting(given.dialogues, 2.0, 0.2, store)
        fast = await working(given.dialogues, given.pieces, 0.05, 0.02, store)
        stored = sum(1 for _ in store.traces())
    print(
        json.dumps(
            {
                "bench": "run",
                "dialogues": given.dialogues,
                "at_a_time": AT_A_TIME,
                **slow,
                **fast,
                "stored": stored,
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "cpus": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
