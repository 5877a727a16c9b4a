"""Work that processes share, while they are killed: is each trace scored once, is the budget held, is each rollout held
once? Prints one JSON line.

    python -m tests.bench.bench_work [--traces 400] [--kills 12] [--runners 16] [--part scoring|runners] [--sqlite]

*Scoring*: four processes of `cm2 work` on a PostgreSQL of our own; one of them is killed with SIGKILL and replaced at
each of `kills` seeded counts of the judge's calls (the four in turn), and the server is crashed and restarted half-
way. Half of the traces are stored while they work. The judge is a server on loopback that checks what it is sent; its
replies are of any length, so that calls cost more than is estimated. The budget suffices for some two thirds of the
traces: `over_usd` is by how much what the judge was paid for passes it, `over_calls` that in calls of the dearest
kind (at most 4 are allowed). Then it is raised. `missing`, `twice`, `null` and `left` (jobs) have to be 0.
`asked_again` are calls beyond one a trace.

*Runners*: so many processes of `cm2 run --shard` of one name, one of which is killed. `missing`, `stored_twice`,
`broken`, `left` and `held_twice` (a turn that two processes began, other than the killed one) have to be 0."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from cm2_agent import Message, Run
from cm2_agent.errors import StoreError
from cm2_agent.store import SQLStore
from cm2_agent.types.task import Task, save_tasks
from cm2_agent.workers.status import QueueStatus, statuses
from tests.bench import bench_resume
from tests.judge_server import Asked, JudgeServer, honest
from tests.postgres_server import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
WORKERS, LEASE, LATENCY = 4, 3, 0.05
USD_A_TOKEN = 1e-3
CHECKLIST = 'name: judged\nitems:\n  - {id: answers, question: "Is the question answered?", turn: each}\n'
MAIN = (sys.executable, "-c", "from cm2_agent.cli import main; main()")


def talkative(asked: Asked) -> dict[str, Any]:
    """An honest answer whose reasons are long or short, as the prompt has it."""
    told = honest(asked)
    digest = hashlib.sha256("".join(line.get("content", "") for line in asked.lines).encode()).digest()
    for item in told["items"]:
        item["analysis"] = "It is so. " * (digest[0] * 2)
    return told


class Paid:
    """What the judge was paid for, call by call, as its replies say."""

    def __init__(self) -> None:
        self.usd: list[float] = []

    def __call__(self, asked: Asked) -> dict[str, Any]:
        told = talkative(asked)
        self.usd.append((len(asked.text) // 4 + (len(json.dumps(told)) + 3) // 4) * USD_A_TOKEN)
        return told


def dialogue(number: int) -> Run:
    asked, told = f"Where is order {number}?", f"Order {number} was shipped."
    messages = (Message.of("user", asked), Message.of("assistant", told))
    now = time.time_ns()
    return Run(id=f"r{number}", messages=messages, started=now - 1, ended=now)


def until(what: str, seen: Callable[[], bool], seconds: float = 600) -> None:
    """Wait until it is so. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not seen():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


def scoring(traces: int, kills: int, seed: int = 7) -> dict[str, Any]:
    draw, paid = random.Random(seed), Paid()
    with PostgresServer() as server, tempfile.TemporaryDirectory() as name, JudgeServer(paid, latency=LATENCY) as judge:
        (Path(name) / "judged.yaml").write_text(CHECKLIST)
        with SQLStore(server.url) as store:
            store.save_runs(dialogue(number) for number in range(traces // 2))
        budget = traces * 2 / 3 * 600 * USD_A_TOKEN
        command = [
            *MAIN,
            "work",
            str(Path(name) / "judged.yaml"),
            "--judge",
            "stub",
            "--judge-base-url",
            judge.base_url,
        ]
        command += [
            "--price",
            f"{USD_A_TOKEN * 1e6:g},{USD_A_TOKEN * 1e6:g}",
            "--lease",
            str(LEASE),
            "--concurrency",
            "4",
        ]
        command += ["--store", server.url, "--json"]
        log = (Path(name) / "log").open("w")

        def start(*more: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [*command, *more], cwd=ROOT, env={**os.environ, "CM2_JUDGE_API_KEY": "k"}, stdout=log, stderr=log
            )

        started = time.monotonic()
        running = [start("--budget-usd", str(budget)) for _ in range(WORKERS)]
        killed = 0
        try:
            with SQLStore(server.url) as store:
                application = threading.Thread(target=_store_rest, args=(server.url, traces), daemon=True)
                application.start()
                calls = sorted(draw.sample(range(traces // 20, traces // 2), kills))
                for number, count in enumerate(calls):
                    until(f"{count} calls", lambda count=count: judge.calls >= count)  # type: ignore[misc]
                    victim = number % WORKERS
                    time.sleep(draw.uniform(0, LATENCY))  # anywhere within a call
                    running[victim].kill()
                    killed += running[victim].wait() == -signal.SIGKILL
                    running[victim] = start()
                    if number == kills // 2:
                        server.restart()
                application.join()
                until("a budget that is spent", lambda: _is_spent(store))
                cost, spent = sum(paid.usd), _status(store)
                last = subprocess.run(
                    [*command, "--budget-usd", str(budget * 10), "--drain"],
                    cwd=ROOT,
                    env={**os.environ, "CM2_JUDGE_API_KEY": "k"},
                    stdout=subprocess.PIPE,
                    stderr=log,
                    check=False,
                )
                until("every job is done", lambda: _left(store) == 0)
                wall = time.monotonic() - started
                result = _scores(store, traces)
                at_work = _status(store).workers if spent is not None else 0
        finally:
            for process in running:
                process.terminate()
            ends = [process.wait() for process in running]
            log.close()
        over = max(0.0, cost - budget)
        return {
            "workers": WORKERS,
            "kills": killed,
            "restarts": 1,
            "traces": traces,
            **result,
            "calls": judge.calls,
            "asked_again": judge.calls - traces,
            "budget_usd": round(budget, 4),
            "paid_usd": round(cost, 4),
            "over_usd": round(over, 4),
            "over_calls": round(over / max(paid.usd), 2),
            "ledger_usd": None if spent is None else round(spent.spent_usd or 0.0, 4),
            "workers_at_work": at_work,
            "ends": sorted(ends),
            "drain": last.returncode,
            "wall_s": round(wall, 1),
        }


def _store_rest(url: str, traces: int) -> None:
    """The application: it stores the other half while workers work, and waits for a store that is away."""
    with SQLStore(url) as store:
        for number in range(traces // 2, traces):
            while True:
                try:
                    store.save_run(dialogue(number))
                except StoreError:
                    time.sleep(0.2)
                else:
                    break
            time.sleep(0.02)


def _status(store: SQLStore) -> QueueStatus:
    (status,) = statuses(store)
    return status


def _is_spent(store: SQLStore) -> bool:
    status = _status(store)
    return "budget" in (status.parked or "") and status.running == 0


def _left(store: SQLStore) -> int:
    with store.database.reading() as connection:
        return connection.scalar(text("SELECT count(*) FROM procrastinate_jobs")) or 0


def _scores(store: SQLStore, traces: int) -> dict[str, int]:
    with store.database.reading() as connection:
        rows = connection.execute(text("SELECT trace, runs, value FROM scores")).all()
    of_trace = Counter(row.trace for row in rows)
    return {
        "scores": len(rows),
        "missing": traces - len(of_trace),
        "twice": sum(count > 1 for count in of_trace.values()),
        "null": sum(row.value is None for row in rows),
        "left": _left(store),
    }


def runners(count: int, url: str, folder: Path) -> dict[str, Any]:
    """So many processes of one run; the second is killed in its fifth turn."""
    tasks = [Task(id=f"t{number}", turns=bench_resume.TURNS) for number in range(bench_resume.TASKS)]
    save_tasks(tasks, folder / "tasks.jsonl")
    (folder / "checklist.yaml").write_text("name: r\nitems:\n  - {id: replies, check: {replied: true}}\n")
    lines = bench_resume.Lines(folder / "turns")
    environment = {**os.environ, "LOG": str(lines.path), "PAUSE": "1.0"}
    SQLStore(url).close()
    started = time.monotonic()
    running = [
        subprocess.Popen(
            [*bench_resume.command(folder, url), "--shard"],
            cwd=ROOT,
            env={**environment, **({"KILL": "5,0.5"} if number == 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]
    outputs = [process.communicate() for process in running]
    wall = time.monotonic() - started
    own = [
        json.loads(out.splitlines()[-1])["dialogues"] if process.returncode == 0 else 0
        for process, (out, _) in zip(running, outputs, strict=True)
    ]
    begun = lines.read()
    dead = str(running[1].pid) if count > 1 else ""
    turns = Counter((thread, turn) for process, thread, turn in begun if process != dead)
    found = bench_resume.found(url, 1, begun)
    return {
        "runners": count,
        "killed": sum(process.returncode == -signal.SIGKILL for process in running),
        "failed": sum(process.returncode not in (0, -signal.SIGKILL) for process in running),
        "took_part": len({process for process, _, _ in begun}),
        "dialogues": found["dialogues"],
        "reported": sum(own),
        "stored": found["stored"],
        "missing": found["missing"],
        "stored_twice": found["twice"],
        "broken": found["broken"],
        "left": found["left"],
        "held_twice": sum(count > 1 for count in turns.values()),
        "wall_s": round(wall, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=400)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--runners", type=int, default=16)
    parser.add_argument("--part", choices=["scoring", "runners"])
    parser.add_argument("--sqlite", action="store_true", help="the runners share an SQLite file")
    given = parser.parse_args()
    result: dict[str, Any] = {"bench": "work"}
    if given.part != "runners":
        result["scoring"] = scoring(given.traces, given.kills)
    if given.part != "scoring":
        with tempfile.TemporaryDirectory() as folder:
            if given.sqlite:
                result["runners"] = runners(given.runners, f"sqlite:///{Path(folder) / 'runs.db'}", Path(folder))
            else:
                with PostgresServer() as server:
                    result["runners"] = runners(given.runners, server.url, Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
