"""What a trainer's data costs: memory a rollout from the store to token rows, and the CPU of making the rows, beside an
earlier commit of this project in the same run.

Each measurement is a process of its own, on this checkout and on the baseline in turn, with the same dialogues: of 10,
20 and 40 turns (7,480 tokens at 40), one model call each, 5 groups of 5 rollouts. `peak_mb_a_rollout` is what the
resident memory grows by at most while the groups are read and become rows, `listed_mb_a_rollout` the same with all
traces in memory (`store.groups`), `held_mb_a_rollout` what Python has allocated for the rows when they alone are left.
`turns_a_cpu_s` counts turns whose traces are in memory and become rows with advantages.

python -m tests.bench.bench_rows [--baseline 2bc61d1] [--rollouts 5] [--repeats 3]  # one JSON line
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
TURNS = (10, 20, 40)
GROUPS = 5


def find(*places: str) -> Any:
    """What is named `MODULE:NAME` in the first module that has it: the baseline's modules have other names."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(f"cm2_agent.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"none of {', '.join(places)} is there")


def write(url: str, turns: int, size: int) -> None:
    """A store with scored groups of dialogues, each call's prompt the one before with what was said since."""
    from cm2_agent import Checklist, Item, SQLStore, score_traces

    message, call_of = (
        find("types.messages:Message", "messages:Message"),
        find("types.run:ModelCall", "trace:ModelCall"),
    )
    run_of = find("types.run:Run", "trace:Run")
    dice = random.Random(0)
    checklist = Checklist(Item("replied", check={"replied": True}), name="bench")
    with SQLStore(url) as store:
        for number in range(GROUPS * size):
            prompt = [dice.randrange(150_000) for _ in range(400)]
            said: list[Any] = []
            runs = []
            for turn in range(turns):
                name = f"{number}-{turn}"
                written = [dice.randrange(150_000) for _ in range(60)]
                asked, reply = message.of("user", f"Turn {turn} of {number}. " * 10), message.of("assistant", name)
                said.append(asked)
                call = call_of(
                    span_id=name,
                    model_version="v",
                    input=tuple(said),
                    output=reply,
                    prompt_ids=tuple(prompt),
                    completion_ids=tuple(written),
                    logprobs=tuple(-dice.random() for _ in written),
                    sampling={"temperature": 1.0, "logprobs": "processed"},
                    usage={"input_tokens": len(prompt), "output_tokens": len(written)},
                    message=1,
                )
                said.append(reply)
                about = {"cm2.task.id": f"task-{number // size}", "cm2.rollout": number % size, "cm2.group": "bench"}
                runs.append(
                    run_of(id=name, thread=f"{number}", messages=(asked, reply), calls=(call,), attributes=about)
                )
                prompt = [*prompt, *written, *(dice.randrange(150_000) for _ in range(120))]
            store.save_runs(runs)

        async def score() -> None:
            async for _ in score_traces(store.traces(), checklist, store=store):
                pass

        asyncio.run(score())


def now_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def dataset_of(groups: Any) -> Any:
    build = find("trainers.dataset:build_dataset", "trainers.collect:collect")
    return build(groups, credits=lambda group: [lambda turn, step: 1.0] * len(group.rollouts))


def memory(url: str, warm: str, listed: bool) -> dict[str, float]:
    from cm2_agent import SQLStore

    def read(store: Any) -> Any:
        return store.groups() if listed or not hasattr(store, "stream_groups") else store.stream_groups()

    with SQLStore(warm) as store:  # the modules that come with the first groups, and SQLAlchemy's statements
        dataset_of(read(store))
    with SQLStore(url) as store:
        gc.collect()
        before = now_mb()
        groups = read(store)
        dataset = dataset_of(groups)
        peak = peak_mb() - before
        rollouts = sum(len(group.rollouts) for group in dataset.groups)
        del groups, dataset
        gc.collect()
        tracemalloc.start()
        dataset = dataset_of(read(store))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / 2**20
        del dataset
        return {"peak": peak / rollouts, "held": held / rollouts}


def speed(url: str, repeats: int) -> dict[str, float]:
    from cm2_agent import SQLStore

    found = []
    with SQLStore(url) as store:
        for _ in range(repeats + 1):  # the first is given away
            groups = store.groups()
            turns = sum(len(rollout.trace.runs) for group in groups for rollout in group.rollouts)
            gc.collect()
            start = time.process_time()
            assert dataset_of(groups).report.rows
            found.append(turns / (time.process_time() - start))
    return {"turns_a_cpu_s": statistics.median(found[1:])}


def checked_out(commit: str, folder: Path) -> Path:
    """The baseline's files. Exits where the history does not hold them."""
    packed = subprocess.run(["git", "-C", str(TOP), "archive", commit], capture_output=True)
    if packed.returncode:
        reason = packed.stderr.decode().strip()
        raise SystemExit(f"the baseline {commit} cannot be read: {reason}; fetch the history, or pass --baseline ''")
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def worker(checkout: Path, *task: str) -> dict[str, float]:
    """One measurement in a process of its own, on a checkout's modules."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "LANGSMITH_TRACING": "false",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", *task]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(checkout: Path, folder: Path, size: int, repeats: int) -> dict[str, Any]:
    urls = {turns: f"sqlite:///{folder}/{turns}.db" for turns in (2, *TURNS)}
    for turns, url in urls.items():
        worker(checkout, "write", url, str(turns), str(size))
    found: dict[str, Any] = {"peak_mb_a_rollout": {}, "held_mb_a_rollout": {}, "listed_mb_a_rollout": {}}
    for turns in TURNS:
        streamed = worker(checkout, "memory", urls[turns], urls[2], "")
        found["peak_mb_a_rollout"][turns] = round(streamed["peak"], 3)
        found["held_mb_a_rollout"][turns] = round(streamed["held"], 3)
        found["listed_mb_a_rollout"][turns] = round(worker(checkout, "memory", urls[turns], urls[2], "1")["peak"], 3)
    found["turns_a_cpu_s"] = round(worker(checkout, "speed", urls[TURNS[-1]], str(repeats))["turns_a_cpu_s"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", default="2bc61d1", help="a commit; '' measures this checkout alone")
    parser.add_argument("--rollouts", type=int, default=5, help="of each of the five groups")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        task, url, *rest = given.worker
        if task == "write":
            write(url, int(rest[0]), int(rest[1]))
            print("{}")
        elif task == "memory":
            print(json.dumps(memory(url, rest[0], bool(rest[1]))))
        else:
            print(json.dumps(speed(url, int(rest[0]))))
        return
    out: dict[str, Any] = {"bench": "rows", "baseline": given.baseline or None, "rollouts": GROUPS * given.rollouts}
    with tempfile.TemporaryDirectory() as folder:
        (here := Path(folder) / "now").mkdir()
        out.update(measure(TOP, here, given.rollouts, given.repeats))
        if given.baseline:
            (before := Path(folder) / "then").mkdir()
            (old := Path(folder) / "checkout").mkdir()
            out["of_baseline"] = measure(checked_out(given.baseline, old), before, given.rollouts, given.repeats)
            out["turns_ratio"] = round(out["turns_a_cpu_s"] / out["of_baseline"]["turns_a_cpu_s"], 2)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
