"""What `watch` costs: CPU of watched runs against the bare graph, saving and scoring included, beside an earlier commit
of this project in the same run; prints one JSON line.

Two workers, one on this checkout and one on the baseline, take turns block by block, so that both see the same machine.
A block runs the bare and the watched graph alternately. `in_all` counts every thread of the process until `flush` has
returned, `caller` the thread that calls the graph. `growth` is a thread of many turns: CPU above bare late in it
against early in it.

python tests/bench/bench_watch.py [--baseline 2bc61d1] [--blocks 5] [--runs 40] [--turns 160] [--threads 5]
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("LANGSMITH_TRACING", "false")
TOP = Path(__file__).parents[2]
SHAPES = {"2+1": 1, "11+10": 10}
"""Model calls + tool calls of a run: how many tools it calls."""
EARLY, WIDTH = 1, 3


def build(calls: int, checkpointer: Any = None) -> Any:
    """An agent whose model is scripted: it calls the tool `calls` times, then replies."""
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_core.tools import tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    class Scripted(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "scripted"

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
            done = 0
            while done < len(messages) and isinstance(messages[-1 - 2 * done], ToolMessage):
                done += 1
            if done < calls:
                call = {"name": "get_order", "args": {"order_id": done}, "id": f"c{len(messages)}"}
                message = AIMessage(content="", tool_calls=[call])
            else:
                message = AIMessage(content="Order 7 was shipped on Tuesday and arrives on Friday.")
            return ChatResult(generations=[ChatGeneration(message=message)])

    @tool
    def get_order(order_id: int) -> str:
        """Look an order up."""
        return f"order {order_id}: shipped, arrives on Friday"

    model = Scripted()
    graph: Any = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([get_order]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(checkpointer=checkpointer)


def checklist() -> Any:
    from cm2_agent import Checklist, Item

    return Checklist(
        Item("looked_up", check={"called": "get_order"}),
        Item("looked_up_first", check={"called": "get_order", "before": "reply"}),
        Item("no_error", check={"no_tool_error": True}),
        Item("replied", check={"replied": True}),
        Item("says_when", check={"reply_matches": "(?i)friday|tuesday"}, turn="trace"),
        name="bench",
    )


class Worker:
    """One side: the bare graph and the watched one, measured in turns."""

    def __init__(self, folder: Path) -> None:
        face = importlib.import_module("cm2_agent")
        if not hasattr(face, "flush"):  # as it was at the baseline
            self.flush = importlib.import_module("cm2_agent.embed").flush
        else:
            self.flush = face.flush
        self.watch, self.folder = face.watch, folder
        self.stores = 0

    def store(self) -> str:
        self.stores += 1
        return f"sqlite:///{self.folder}/{self.stores}.db"

    def runs(self, shape: str, count: int) -> dict[str, float]:
        """CPU-ms a run, bare and watched: on the caller's thread, and in all."""
        bare = build(SHAPES[shape])
        watched = self.watch(build(SHAPES[shape]), checklist(), store=self.store())
        question = {"messages": [("user", "Where is order 7?")]}
        config = {"recursion_limit": 60}
        for graph in (bare, watched):
            for _ in range(3):
                graph.invoke(question, config)
        self.flush()
        gc.collect()
        spent = dict.fromkeys(("bare", "bare_caller", "caller", "in_all"), 0.0)
        for _ in range(max(1, count // 10)):
            begun, own = time.process_time(), time.thread_time()
            for _ in range(10):
                bare.invoke(question, config)
            spent["bare_caller"] += time.thread_time() - own
            spent["bare"] += time.process_time() - begun
            begun, own = time.process_time(), time.thread_time()
            for _ in range(10):
                watched.invoke(question, config)
            spent["caller"] += time.thread_time() - own
            self.flush()
            spent["in_all"] += time.process_time() - begun
        done = max(1, count // 10) * 10
        return {name: 1000 * value / done for name, value in spent.items()}

    def thread(self, turns: int) -> dict[str, float]:
        """CPU-ms above bare of a turn, early and late in one thread of `turns` turns and a few more."""
        from langgraph.checkpoint.memory import InMemorySaver

        graphs = {
            "bare": build(1, InMemorySaver()),
            "watched": self.watch(build(1, InMemorySaver()), checklist(), store=self.store()),
        }
        config = {"configurable": {"thread_id": "t"}}
        spent: dict[str, list[float]] = {"bare": [], "watched": []}
        gc.collect()
        for turn in range(turns + WIDTH):
            for name, graph in graphs.items():
                begun = time.process_time()
                graph.invoke({"messages": [("user", f"Where is order {turn}?")]}, config)
                if name == "watched":
                    self.flush()
                spent[name].append(1000 * (time.process_time() - begun))
        above = [with_it - without for with_it, without in zip(spent["watched"], spent["bare"], strict=True)]
        late = turns - 1
        return {
            "early": statistics.mean(above[EARLY : EARLY + WIDTH]),
            "late": statistics.mean(above[late : late + WIDTH]),
        }


def work() -> None:
    """Answer requests, one JSON line each, on stdin."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # nothing else may write between the answers
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(getattr(worker, request["do"])(*request["with"])), file=answers, flush=True)


class Side:
    """A worker in a process of its own, on the checkout at `path`; `script` is the benchmark that it runs."""

    def __init__(self, path: Path, script: str = __file__) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path), "LANGSMITH_TRACING": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, do: str, *arguments: Any) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, "with": arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended early; its errors stand above")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(sides: dict[str, Side], blocks: int, runs: int, turns: int, threads: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for shape in SHAPES:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(blocks):
            for name, side in sides.items():
                found[name].append(side.ask("runs", shape, runs))
        rows = {
            name: {key: statistics.median(block[key] for block in given) for key in given[0]}
            for name, given in found.items()
        }
        out[shape] = {
            name: {
                **{f"{key}_ms": round(value, 3) for key, value in row.items()},
                "caller_ratio": round(row["caller"] / row["bare_caller"], 3),
                "in_all_ratio": round(row["in_all"] / row["bare"], 3),
            }
            for name, row in rows.items()
        }
        if "baseline" in rows:
            for key, bare in (("caller", "bare_caller"), ("in_all", "bare")):
                added = {name: row[key] - row[bare] for name, row in rows.items()}
                out[shape][f"{key}_overhead_of_baseline"] = round(added["now"] / added["baseline"], 3)
    growth: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(threads):
        for name, side in sides.items():
            growth[name].append(side.ask("thread", turns))
    out["growth"] = {}
    for name, given in growth.items():
        early, late = (statistics.median(row[key] for row in given) for key in ("early", "late"))
        out["growth"][name] = {
            "early_ms": round(early, 3),
            "late_ms": round(late, 3),
            "ratio": round(late / early, 2),
            "turns": turns,
        }
    return out


def checked_out(commit: str, folder: Path) -> Path:
    """The files of an earlier commit in `folder`."""
    packed = subprocess.run(["git", "-C", str(TOP), "archive", commit], capture_output=True)
    if packed.returncode:
        reason = packed.stderr.decode(errors="replace").strip()
        raise SystemExit(f"the baseline {commit} cannot be read: {reason}; fetch the history, or pass --baseline ''")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", default="2bc61d1", help="a commit; '' measures this checkout alone")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--runs", type=int, default=40, help="runs of a block")
    parser.add_argument("--turns", type=int, default=160)
    parser.add_argument("--threads", type=int, default=5, help="threads of so many turns")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    with tempfile.TemporaryDirectory() as folder:
        sides = {"now": Side(TOP)}
        if options.baseline:
            sides["baseline"] = Side(checked_out(options.baseline, Path(folder)))
        try:
            found = measure(sides, options.blocks, options.runs, options.turns, options.threads)
        finally:
            for side in sides.values():
                side.close()
    print(json.dumps({"bench": "watch", "baseline": options.baseline or None, **found}))


if __name__ == "__main__":
    main()
