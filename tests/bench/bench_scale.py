"""What commands cost on large stores: CPU-seconds and the most memory of each, in a process of its own. Prints one JSON
line.

    python -m tests.bench.bench_scale [--dialogues 100000] [--traces 1000000] [--postgres URL] [--folder FOLDER]

Two stores are made by SQL (scale_store.py) and, with `--folder`, left there for the next time: dialogues of 10 spans
(6 model calls, 4 executions of tools) in 3 turns, scored by a checklist of 8 items, half of them after each turn; and
traces of 2 model calls. `--postgres` names an empty database, for the first of them. CPU on PostgreSQL is that of the
client; `--commands` measures some of the commands alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMANDS = ("show", "doctor", "report", "export", "rows", "score")
CHECKS = """name: scale-checks
items:
  - {id: looks, check: {called: get_order}, turn: 0}
  - {id: numbers, check: {reply_matches: '[0-9]'}}
  - {id: refunds, check: {called: refund}, turn: 1}
"""


def measured(*command: str) -> dict[str, float]:
    """CPU and wall seconds and the most megabytes of a process. Raises RuntimeError where it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *command], stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0 and "doctor" not in command:  # it exits 1 on a problem, such as a NULL verdict
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {said.read().decode()[-2000:]}")
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "wall_s": round(time.perf_counter() - began, 2),
        "mb": round(used.ru_maxrss / 1024),
    }


def commands(url: str, folder: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """What these commands cost on a store."""
    (folder / "checks.yaml").write_text(CHECKS, encoding="utf-8")
    reward = ["--reward", inside("scale_store", "REWARD")]
    typed = {
        "show": ["show", *reward],
        "report": ["report", *reward],
        "export": ["export", str(folder / "export.jsonl"), *reward],
        "rows": ["train", "--rows-only", *reward],
        "score": ["score", str(folder / "checks.yaml")],
    }
    cm2 = ["-c", "from cm2_agent.cli.app import app; app()"]
    found = {}
    for name in names:
        found[name] = measured(*cm2, *typed.get(name, [name]), "--store", url, "--json")
        (folder / "export.jsonl").unlink(missing_ok=True)
    return found


def inside(module: str, what: str) -> Any:
    """The value of an expression in a module beside this one, taken in a process of its own: what this process imports
    would count in the memory of those that it starts."""
    code = f"import json; from tests.bench import {module} as m; print(json.dumps(m.{what}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def reading(url: str, most: int) -> dict[str, float]:
    """Model calls that are read back in a CPU-second."""
    from itertools import islice

    from cm2_agent.store import SQLStore

    with SQLStore(url) as store:
        next(store.traces(), None)
        cpu, calls = time.process_time(), 0
        for trace in islice(store.traces(), most):
            calls += len(trace.calls)
        return {"calls": calls, "calls_a_cpu_s": round(calls / (time.process_time() - cpu))}


def groups(url: str, rounds: int = 9) -> dict[str, float]:
    """One policy's groups, selected (their keys and rollouts alone), and read whole, in CPU-milliseconds."""
    from cm2_agent.store import SQLStore

    selected, read, size = [], [], 0
    with SQLStore(url) as store:
        for number in range(rounds + 1):
            policy = f"policy-{number:04d}"
            began = time.process_time()
            found = store.stream_groups(policy=policy)
            middle = time.process_time()
            size = sum(len(group.rollouts) for group in found)
            if number:
                selected.append((middle - began) * 1e3)
                read.append((time.process_time() - began) * 1e3)
            if not store.stream_groups(policy=f"policy-{number + 1:04d}", min_size=1):
                break
    half = statistics.median
    return (
        {"rollouts": size, "select_cpu_ms": round(half(selected), 1), "read_cpu_ms": round(half(read), 1)}
        if read
        else {}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=100_000)
    parser.add_argument("--traces", type=int, default=1_000_000, help="of 2 spans each; 0: none")
    parser.add_argument("--postgres", metavar="URL", help="an empty database")
    parser.add_argument("--folder", type=Path, help="where the stores stay")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="some of them, separated by commas")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        print(json.dumps(measure(folder, given)))


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The line."""
    result: dict[str, Any] = {"dialogues": given.dialogues, "traces": given.traces}
    making = "import sys; from tests.bench.scale_store import make; "
    url = given.postgres or f"sqlite:///{folder / f'dialogues-{given.dialogues}.db'}"
    if given.postgres or not Path(url.removeprefix("sqlite:///")).exists():
        result["make"] = measured("-c", making + f"make({url!r}, traces={given.dialogues})")
    result["commands"] = commands(url, folder, [name for name in given.commands.split(",") if name])
    result["reading"] = inside("bench_scale", f"reading({url!r}, 10_000)")
    if given.traces and not given.postgres:
        small = f"sqlite:///{folder / f'traces-{given.traces}.db'}"
        if not Path(small.removeprefix("sqlite:///")).exists():
            result["make_traces"] = measured("-c", making + f"make({small!r}, traces={given.traces}, spans=2)")
        result["groups"] = inside("bench_scale", f"groups({small!r})")
    return result


if __name__ == "__main__":
    main()
