"""CPU-milliseconds of a run of 10 model and 10 tool calls, traced and bare, interleaved in one process; prints one JSON
line.

python tests/bench/bench_capture.py [--rounds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("LANGSMITH_TRACING", "false")

from langchain_core.messages import AIMessage
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.run import Run

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.tracing import apps


def dialogue(model_calls: int) -> Any:
    script = [apps.calls(number) for number in range(model_calls - 1)] + [AIMessage(content="done")]
    return apps.agent(apps.ScriptedModel(script=script))


async def measure(rounds: int, variants: dict[str, Any]) -> dict[str, float]:
    """Median CPU-ms of each variant, taken in turns."""
    question = {"messages": [("user", "what are the values?")]}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 5):
        for name, graph in variants.items():
            before = time.process_time_ns()
            await graph.ainvoke(question, {"recursion_limit": 60})
            if number >= 5:
                times[name].append((time.process_time_ns() - before) / 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    runs: list[Run] = []
    handler = capture(runs.append)
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exported = capture(runs.append, provider)
    gc.collect()
    gc.freeze()
    # 11 model calls: ten that call a tool, and the reply
    long, short = dialogue(11), dialogue(3)
    out: dict[str, Any] = {"bench": "capture", "rounds": rounds, "model_calls": 11, "tool_calls": 10}
    medians = asyncio.run(
        measure(
            rounds,
            {
                "bare": long,
                "traced": long.with_config(callbacks=[handler]),
                "exported": long.with_config(callbacks=[exported]),
                "bare_3": short,
                "traced_3": short.with_config(callbacks=[handler]),
            },
        )
    )
    out |= {f"{name}_ms": round(value, 3) for name, value in medians.items()}
    out["added_ms"] = round(medians["traced"] - medians["bare"], 3)
    out["added_with_exporter_ms"] = round(medians["exported"] - medians["bare"], 3)
    out["added_3_model_calls_ms"] = round(medians["traced_3"] - medians["bare_3"], 3)
    out["runs"] = len(runs)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
