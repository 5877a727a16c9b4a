"""What `cm2 doctor` says of an app that knows nothing of us (tests/graphs/plain_app.py: plain function nodes, tools run
by hand, streaming), beside what the app's own ledger counted. Prints one JSON line.

    python -m tests.bench.bench_doctor [--dialogues 20]

`watch`ed dialogues, each streamed: every other one by a tiny transformer, whose calls have token ids, the rest by a
scripted model that calls tools. `truthful` says whether every count is the ledger's."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage

from cm2_agent.online.watch import flush, watch
from tests.graphs import plain_app
from tests.models.test_local import chat_model, network
from tests.tracing.apps import ScriptedModel

AGENT = "tests.graphs.plain_app:graph"


def calling(*asked: tuple[str, str, Any]) -> AIMessage:
    """An assistant message that asks for tools: name, argument, value."""
    calls: list[Any] = [
        {"name": name, "args": {key: value}, "id": f"{name}-{value}", "type": "tool_call"} for name, key, value in asked
    ]
    return AIMessage(content="", tool_calls=calls)


SCRIPT = [
    calling(("get_order", "order_id", 7), ("refund", "order_id", 7)),
    calling(("search", "words", "refunds")),
    AIMessage("Done."),
    AIMessage("Yours."),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=20)
    given = parser.parse_args()
    small = network()
    small.config.max_position_embeddings = 2048  # its tools are shown to it byte by byte
    models: list[Any] = [ScriptedModel(script=SCRIPT), chat_model(model=small, max_tokens=8, seed=1)]

    async def streamed(graph: Any, thread: str) -> None:
        asked: Any = {"messages": [HumanMessage("Where is order 7?")]}
        async for _ in graph.astream(asked, {"configurable": {"thread_id": thread}}, stream_mode="messages"):
            pass

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'live.db'}"
        for number in range(given.dialogues):
            asyncio.run(streamed(watch(plain_app.build(models[number % 2]), store=url), f"t{number}"))
        assert flush(300)
        words = [str(Path(sys.executable).with_name("cm2")), "doctor", "--agent", AGENT, "--store", url, "--json"]
        done = subprocess.run(words, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    found, ledger = json.loads(done.stdout.splitlines()[-1]), dict(plain_app.LEDGER)
    truthful = (
        found["calls"]["trainable"] == ledger["model"]
        and all(found["tools"][name]["asked"] == ledger[name] for name in ("get_order", "refund", "search"))
        and found["switch"]
        == {"seen": ["search"], "switchable": [], "unseen": {"get_order": "run_tools", "refund": "think"}}
    )
    told = {"switch": found["switch"], "calls": found["calls"], "tools": found["tools"]}
    print(json.dumps({"bench": "doctor", "dialogues": given.dialogues, "truthful": truthful, "ledger": ledger, **told}))


if __name__ == "__main__":
    main()
