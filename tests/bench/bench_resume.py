"""A run that is killed again and again: is every dialogue stored exactly once, and does none begin again that was under
way? Prints one JSON line.

    python -m tests.bench.bench_resume [--kills 20] [--store URL]

`cm2 run` on 40 tasks, two rollouts each, of three turns; killed with SIGKILL at seeded random points, each time
followed by the same command. `missing`, `twice`, `broken` (a dialogue without its turns, calls, token ids or reward)
and `left` (checkpoints that nobody needs) have to be 0. `resumed` counts the dialogues that a process took up after a
turn that another had finished; `turns_again` the turns begun twice, which are those that were under way."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cm2_agent.store import SQLStore
from cm2_agent.types.task import Task, save_tasks
from cm2_agent.types.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
TASKS, ROLLOUTS = 40, 2
TURNS = ("look 1 up", "and 2", "thanks")


class Lines:
    """The turns that began, as the agent's processes wrote them down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def read(self) -> list[tuple[str, str, int]]:
        rows = [line.split("\t") for line in self.path.read_text().split("\n")[:-1]]
        return [(process, thread, int(turn)) for process, thread, turn in rows]


def command(folder: Path, url: str) -> list[str]:
    """The run, as it is typed again and again."""
    return [
        sys.executable,
        "-c",
        "from cm2_agent.cli import main; main()",
        "run",
        str(folder / "tasks.jsonl"),
        "--agent",
        "tests.runner.resume_agent:graph",
        "--allow-real",
        "look",
        "--checklist",
        str(folder / "checklist.yaml"),
        "--group",
        str(ROLLOUTS),
        "--name",
        "nightly",
        "--concurrency",
        "4",
        "--store",
        url,
        "--json",
    ]


def killed(folder: Path, url: str, kills: int, seed: int = 4) -> tuple[int, list[tuple[str, str, int]]]:
    """Run, kill, run again; how many were killed, and the turns that began: (process, thread, turn)."""
    save_tasks([Task(id=f"t{number}", turns=TURNS) for number in range(TASKS)], folder / "tasks.jsonl")
    (folder / "checklist.yaml").write_text("name: r\nitems:\n  - {id: replies, check: {replied: true}}\n")
    lines, draw, count = Lines(folder / "turns"), random.Random(seed), 0
    environment = {**os.environ, "LOG": str(lines.path), "PAUSE": "0.02"}
    for number in range(kills + 1):
        # So many turns further on, and anywhere within the last.
        kill = {"KILL": f"{draw.randint(1, 9)},{draw.uniform(0, 0.06)}"} if number < kills else {}
        done = subprocess.run(
            command(folder, url), cwd=ROOT, env={**environment, **kill}, check=False, capture_output=True
        )
        count += done.returncode == -signal.SIGKILL
    assert done.returncode == 0, done.stderr.decode()
    return count, lines.read()


def whole(trace: Trace, store: SQLStore) -> bool:
    """Whether a stored dialogue has all its turns, calls and token ids, and its reward."""
    score = store.score(trace.id)
    said = [message.text for message in trace.messages if message.role == "user"]
    calls = [len(run.calls) for run in trace.runs]
    return (
        said == list(TURNS)
        and calls == [2, 2, 1]
        and all(call.completion_ids for call in trace.calls)
        and (trace.failure is None and score is not None and score.reward == 1.0)
    )


def found(url: str, kills: int, begun: list[tuple[str, str, int]]) -> dict[str, Any]:
    """What the store holds at the end."""
    threads = {f"nightly/t{task}@1/{rollout}" for task in range(TASKS) for rollout in range(ROLLOUTS)}
    with SQLStore(url) as store:
        traces = list(store.traces())
        stored = Counter(trace.id for trace in traces)
        broken = sum(not whole(trace, store) for trace in traces)
        left = len(store.checkpointer().pending())
    firsts: dict[tuple[str, str], int] = {}
    for process, thread, turn in begun:
        firsts.setdefault((process, thread), turn)
    return {
        "bench": "resume",
        "kills": kills,
        "dialogues": len(threads),
        "stored": sum(stored.values()),
        "missing": len(threads - stored.keys()),
        "twice": sum(count > 1 for count in stored.values()),
        "broken": broken,
        "left": left,
        "resumed": sum(turn > 1 for turn in firsts.values()),
        "turns_again": len(begun) - len({(t, n) for _, t, n in begun}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--store", default=None, help="a fresh database (default: a SQLite file of its own)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.store or f"sqlite:///{Path(folder) / 'runs.db'}"
        print(json.dumps(found(url, *killed(Path(folder), url, given.kills))))


if __name__ == "__main__":
    main()
