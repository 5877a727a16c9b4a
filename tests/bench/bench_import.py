"""What importing costs, in CPU-seconds of a new interpreter, beside LangGraph: python -m tests.bench.bench_import

The programs take turns, so that a busy machine slows all alike; the figures are medians over the rounds, with the bare
interpreter's own start subtracted."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys

PROGRAMS = {
    "interpreter": "pass",
    "import langgraph": "import langgraph",
    "import langgraph.graph": "import langgraph.graph",
    "import cm2_agent": "import cm2_agent",
    "from cm2_agent import watch": "from cm2_agent import watch",
    "from cm2_agent import score_traces": "from cm2_agent import score_traces",
    "cm2 --help": "import sys; sys.argv = ['cm2', '--help']; from cm2_agent.cli import main; main()",
}
ROUNDS = 11


def cpu_seconds(program: str) -> float:
    """User and system time of a new interpreter that runs a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """The median of each program, without the interpreter's own."""
    for program in PROGRAMS.values():  # the first run compiles and fills the file cache
        cpu_seconds(program)
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            taken[name].append(cpu_seconds(program))
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    bare = medians.pop("interpreter")
    return {"interpreter": round(bare, 3), **{name: round(one - bare, 3) for name, one in medians.items()}}


if __name__ == "__main__":
    print(json.dumps({"benchmark": "import", "cpu_seconds": measure(), "rounds": ROUNDS, "load": os.getloadavg()[0]}))
