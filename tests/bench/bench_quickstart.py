"""The quickstart of this checkout beside an earlier commit's, paired by seed: what changed in how much it learns.

Each run is `cm2 quickstart --seed N` in a process and a folder of its own, on the baseline and on this checkout in
turn, and takes about 200 CPU-seconds. Its result is kept in `--out`; the same command goes on after an interruption.
`difference` is this checkout's success on the 240 held-out tasks after training less the baseline's, its mean over the
seeds with the 95 % interval of Student's t.

python -m tests.bench.bench_quickstart [--baseline 2bc61d1] [--seeds 8] [--out runs/pairs]  # one JSON line
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scipy import stats

from tests.bench.bench_rows import TOP, checked_out

COMMAND = "from cm2_agent.cli import main; main()"


def quickstart(source: Path, seed: int, result: Path) -> dict[str, Any]:
    """What one run printed; a finished one is read again."""
    if not result.exists():
        folder = result.with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)
        env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "LANGSMITH_TRACING": "false"}
        words = [sys.executable, "-c", COMMAND, "quickstart", "--seed", str(seed), "--out", str(folder), "--json"]
        done = subprocess.run(words, cwd=result.parent, check=False, stdout=subprocess.PIPE, text=True, env=env)
        if done.returncode:
            raise SystemExit(f"the quickstart of {source} with seed {seed} ended with {done.returncode}")
        shutil.rmtree(folder)
        result.write_text(done.stdout.splitlines()[-1] + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def main(baseline: str, seeds: int, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        old = checked_out(baseline, Path(folder))
        for seed in range(seeds):
            before = quickstart(old, seed, out / f"{baseline}-{seed}.json")
            now = quickstart(TOP, seed, out / f"checkout-{seed}.json")
            rows.append({"seed": seed, "baseline": _figures(before), "checkout": _figures(now)})
    apart = [row["checkout"]["success"] - row["baseline"]["success"] for row in rows]
    error = statistics.stdev(apart) / len(apart) ** 0.5
    half = float(stats.t.ppf(0.975, len(apart) - 1)) * error
    mean = statistics.mean(apart)
    return {
        "bench": "quickstart",
        "baseline": baseline,
        "seeds": rows,
        "difference": {"mean": round(mean, 4), "interval": [round(mean - half, 4), round(mean + half, 4)]},
    }


def _figures(result: dict[str, Any]) -> dict[str, float]:
    after = result["after"]
    return {
        "success": after["success"],
        "greedy": after["greedy"],
        "reward": after["reward"],
        "cpu_seconds": result["cpu_seconds"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--baseline", default="2bc61d1", help="a commit")
    parser.add_argument("--seeds", type=int, default=8, help="seeds 0 to N - 1, at least 2")
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"), help="where each run's result is kept")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error(f"--seeds is {given.seeds}; expected 2 or more: an interval needs them")
    print(json.dumps(main(given.baseline, given.seeds, given.out)))
