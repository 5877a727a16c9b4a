"""The graphs of docs/how-to/serve.md, and an async factory, under `langgraph dev` without `--allow-blocking`."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from cm2_agent.store import SQLStore
from tests.apps.environment import Environment, running, write_page
from tests.apps.servers import PAGE
from tests.apps.waiting import free_port, until

ASYNC_FACTORY = """
from cm2_agent import watch
from desk import build, support


async def make_graph(config):
    return watch(build(), support, store="sqlite:///cm2.db")
"""
GRAPHS = ("desk", "made", "awaited")
TURNS = 3


def check(where: Environment, folder: Path) -> dict[str, object]:
    """Two conversations with each graph: two turns as one answer, one as a stream. Every run must be stored as it
    was, the last ones by the next start."""
    folder.mkdir()
    write_page(PAGE, folder)
    (folder / "more.py").write_text(ASYNC_FACTORY, encoding="utf-8")
    settings = json.loads((folder / "langgraph.json").read_text(encoding="utf-8"))
    settings["graphs"]["awaited"] = "./more.py:make_graph"
    (folder / "langgraph.json").write_text(json.dumps(settings), encoding="utf-8")
    port, log = free_port(), folder / "server.log"
    command = [where.path("langgraph"), "dev", "--no-browser", "--no-reload", "--port", str(port)]
    with running(command, folder, where, log) as process:
        until(lambda: _is_up(port), 90, "langgraph dev did not start", log, process)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0) as client:
            asked = {graph: dict(_conversations(client, graph)) for graph in GRAPHS}
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    words = log.read_text(encoding="utf-8", errors="replace")
    assert "Blocking" not in words, words[-3000:]
    with SQLStore(f"sqlite:///{folder / 'cm2.db'}") as store:
        before = sum(len(trace.runs) for trace in store.traces())
    # The server dies of the signal as soon as it has shut down: a run that had just ended waits for the next start.
    start = "import agents, cm2_agent; assert cm2_agent.flush(120), 'not everything could be saved'"
    subprocess.run([where.path("python"), "-c", start], cwd=folder, env=where.variables(), check=True)
    runs = 0
    with SQLStore(f"sqlite:///{folder / 'cm2.db'}") as store:
        for conversations in asked.values():
            for thread, orders in conversations.items():
                trace = store.trace(thread)
                assert trace is not None, f"thread {thread} is not stored"
                told = [(turn.user[0].text, turn.steps[-1].message.text) for turn in trace.turns]
                assert told == [(f"Where is order {order}?", f"Your order {order} was shipped.") for order in orders], (
                    told
                )
                assert len(trace.runs) == TURNS
                score = store.score(thread)
                assert score is not None, f"thread {thread} has no score"
                assert (score.reward, score.runs) == (1.0, TURNS), score
                runs += len(trace.runs)
        stored = sum(len(trace.runs) for trace in store.traces())
        incidents = store.incidents()
    assert incidents == {}, incidents
    assert stored == runs, f"{stored} runs are stored, {runs} were asked for"
    return {
        "server": "langgraph dev",
        "graphs": len(GRAPHS),
        "answered": runs,
        "stored": before,
        "spooled": stored - before,
        "lost": runs - stored,
    }


def _conversations(client: httpx.Client, graph: str) -> Iterator[tuple[str, list[int]]]:
    for number in (1, 2):
        thread = str(_posted(client, "/threads", {})["thread_id"])
        orders = [number * 100 + turn for turn in range(TURNS)]
        for order in orders[:-1]:
            state = _posted(client, f"/threads/{thread}/runs/wait", _run(graph, order))
            assert state["messages"][-1]["content"] == f"Your order {order} was shipped.", state
        with client.stream("POST", f"/threads/{thread}/runs/stream", json=_run(graph, orders[-1])) as response:
            assert response.status_code == 200, response.read()
            assert f"Your order {orders[-1]} was shipped." in "".join(response.iter_text())
        yield thread, orders


def _run(graph: str, order: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"Where is order {order}?"}
    return {"assistant_id": graph, "input": {"messages": [question]}, "stream_mode": ["updates"]}


def _posted(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, (path, response.status_code, response.text[:2000])
    found = response.json()
    assert isinstance(found, dict)
    return found


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ok", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False
