"""`cm2 loop`'s rule and its resumption on the lending desk; prints one JSON line. Some ten minutes of one core.

`gains`: a loop of 4 rounds from a cold start; each candidate, promoted or not, is compared with the policy that it was
to replace on a large fresh set (400 held-out tasks, one dialogue each, other seeds): what was promoted must be better
there. `shuffled`: the same with advantages permuted within groups, so that there is nothing to learn: promotes nothing.
`no_op`: how many of 200 loops of 4 rounds promote anything where candidate and promoted policy are one policy, whose
rewards are drawn from stored evaluations of it; by promotion tasks and dialogues a task.
`kills`: a small loop, killed with SIGKILL at ten points one after the other, against the same loop unbroken.

python -m tests.bench.bench_loop [--part gains|shuffled|no_op|kills] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

from cm2_agent import GRPO, SQLStore  # noqa: E402 (after the path is set)
from cm2_agent.benchmarks.lending_desk.desk import lending_desk  # noqa: E402
from cm2_agent.compare.collector import collect  # noqa: E402
from cm2_agent.compare.credits import shuffled  # noqa: E402
from cm2_agent.loop.loop import Loop  # noqa: E402
from cm2_agent.loop.promotion import PromotionRule, mean_gain  # noqa: E402
from cm2_agent.loop.settings import LoopSettings  # noqa: E402
from cm2_agent.loop.task_sets import TaskSets  # noqa: E402
from tests.loop.desk_rollouts import DeskRollouts  # noqa: E402

TURNS, START, SEED, ROUNDS = 3, "partial", 901, 4
FRESH = 400
TRIALS = 200
POOL = 24  # dialogues a task whose rewards the no-op trials draw from
KILLS = (
    ("round 1: run", 0),
    ("round-1: dialogues", 5),
    ("round 1: run", 1),
    ("round 1: score", 2),
    ("round 1: train", 0),
    ("round-1: steps", 1),
    ("round 1: train", 1),
    ("round-1-promoted: dialogues", 4),
    ("round 1: promote", 1),
    ("round-2-candidate: dialogues", 7),
)
"""Where the loop is killed: what its progress says (its end may follow), and how much of it is done."""


def train(level: str, *, mixed: bool = False, steps: int = 12, rows: int = 48, learning_rate: float = 8e-4) -> Any:
    """GRPO at a level, or with its advantages permuted within groups."""

    def one(policy: str, out: Path, groups: Any, *, seed: int, advance: Callable[[], object]) -> Mapping[str, Any]:
        how: dict[str, Any] = {"credits": shuffled(level, seed)} if mixed else {"level": level}
        grpo = GRPO(
            policy,
            out,
            steps=steps,
            rollouts_per_step=rows,
            learning_rate=learning_rate,
            warmup_steps=min(2, steps - 1),
            seed=seed,
            args={"epsilon": 0.2, "epsilon_high": 0.28},
            **how,
        )
        grpo.train(groups, progress=lambda step, total, metrics: advance())
        return {name: grpo.report[name] for name in ("steps", "trained_tokens")}

    return one


def cold_start(folder: Path) -> Path:
    made = folder / "start"
    if not made.exists():
        lending_desk().cold_start(folder / ".start", turns=TURNS, start=START, seed=SEED).rename(made)
    return made


def desk_loop(folder: Path, store: SQLStore, *, start: Path, trainer: Any, **more: Any) -> Loop:
    desk = lending_desk()
    sizes = {"training": 96, "promotion": 60, "test": 96, **more.pop("sizes", {})}
    settings = {"rounds": ROUNDS, "group": 12, "tasks": 24, "evaluations": 2, "seed": SEED, **more.pop("settings", {})}
    turns = more.pop("turns", TURNS)
    return Loop(
        name="lending",
        start=str(start),
        folder=folder,
        store=store,
        tasks=TaskSets(
            training=desk.training(1, turns, sizes["training"]),
            promotion=desk.training(1_000_000, turns, sizes["promotion"]),
            test=desk.heldout(0, turns, sizes["test"]),
        ),
        rollouts=DeskRollouts(desk=desk, store=store),
        train=trainer,
        settings=LoopSettings(**settings),
        **more,
    )


def rewards(policy: Path | str, tasks: Sequence[Any], *, seed: int, group: int = 1) -> dict[str, list[float]]:
    """What dialogues with a policy are worth, by task."""
    found = collect(lending_desk(), policy, tasks, group=group, seed=seed, name=f"fresh-{seed}")
    return {one.task_id: [rollout.score.lower or 0.0 for rollout in one.rollouts] for one in found}


def measured(folder: Path, *, mixed: bool) -> dict[str, Any]:
    """A whole loop, and each of its candidates on the fresh set against the policy that it was to replace."""
    began = time.process_time()
    start = cold_start(folder)
    where = folder / ("shuffled" if mixed else "gains")
    where.mkdir(exist_ok=True)
    with SQLStore(f"sqlite:///{where / 'cm2.db'}") as store:
        found = desk_loop(where / "loop", store, start=start, trainer=train("turn", mixed=mixed)).run()
    tasks, now, rounds = lending_desk().heldout(7, TURNS, FRESH), str(start), []
    worth = {now: rewards(now, tasks, seed=99)}
    for one in found["rounds"]:
        candidate = str(where / "loop" / "policies" / f"round-{one['round']}")
        fresh: dict[str, Any] = {"fresh_gain": None, "fresh_interval": None}
        if one["candidate"] is not None:
            worth[candidate] = rewards(candidate, tasks, seed=99)
            gain, interval = mean_gain([worth[candidate][id][0] - worth[now][id][0] for id in worth[now]])
            fresh = {"fresh_gain": round(gain, 4), "fresh_interval": [round(bound, 4) for bound in interval or ()]}
            now = candidate if one["promoted"] else now
        shown = {name: one[name] for name in ("promoted", "gain", "p", "share", "tokens", "seconds")}
        rounds.append({**shown, **fresh})
    promoted = [one for one in rounds if one["promoted"]]
    return {
        "rounds": rounds,
        "promoted": len(promoted),
        "real": sum(one["fresh_interval"][0] > 0 for one in promoted),
        "test": found["test"],
        "cpu_seconds": round(time.process_time() - began),
    }


def no_op(folder: Path) -> list[dict[str, Any]]:
    """Loops in which both policies are one."""
    known = folder / "pool.json"
    if not known.exists():
        drawn = rewards(cold_start(folder), lending_desk().training(1_000_000, TURNS, 60), seed=5, group=POOL)
        known.write_text(json.dumps(drawn), encoding="utf-8")
    pool = json.loads(known.read_text(encoding="utf-8"))
    rows = []
    for tasks, dialogues, fresh in ((60, 2, False), (60, 1, False), (20, 2, False), (60, 4, True)):
        rule, rng = PromotionRule(rounds=ROUNDS, fresh=fresh), random.Random(f"{tasks} {dialogues} {fresh}")
        promoted = sum(_promotes(rule, pool, rng, tasks, dialogues) for _ in range(TRIALS))
        row = {"tasks": tasks, "dialogues": dialogues, "fresh": fresh, "trials": TRIALS, "promoted": promoted}
        rows.append({**row, "share": promoted / TRIALS})
    return rows


def _promotes(
    rule: PromotionRule, pool: Mapping[str, list[float]], rng: random.Random, tasks: int, dialogues: int
) -> bool:
    """Whether any round of one loop promotes: each draws new dialogues of the one policy for both sides."""
    names = rng.sample(sorted(pool), tasks)
    for number in range(1, rule.rounds + 1):
        compared = names[number - 1 :: rule.rounds] if rule.fresh else names
        drawn = {name: rng.sample(pool[name], 2 * dialogues) for name in compared}
        one = {name: values[:dialogues] for name, values in drawn.items()}
        other = {name: values[dialogues:] for name, values in drawn.items()}
        if rule.decide(number, one, other, seed=rng.randrange(2**31)).promoted:
            return True
    return False


def small_loop(folder: Path, kill: tuple[str, int] | None) -> dict[str, Any]:
    """A loop of two small rounds, killed where `kill` says."""
    start = cold_start(folder.parent)
    folder.mkdir(exist_ok=True)

    def progress(what: str, done: int, total: int) -> None:
        place = what.split("-", 2)[-1] if "dialogues" in what or "steps" in what else what
        if kill is not None and _is_at(place, kill[0]) and done == kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    sizes = {"training": 8, "promotion": 8, "test": 8}
    settings = {"rounds": 2, "group": 4, "tasks": 4, "evaluations": 1, "alpha": 0.9}
    trainer = train("turn", steps=3, rows=16, learning_rate=1e-3)
    with SQLStore(f"sqlite:///{folder / 'cm2.db'}") as store:
        more = {"sizes": sizes, "settings": settings, "turns": 1, "progress": progress}
        found = desk_loop(folder / "loop", store, start=start, trainer=trainer, **more).run()
        rows = [(one.version, one.state, one.parent, dict(one.data)) for one in store.policies()]
        count = len(list(store.scores()))
    for one in (found, *found["rounds"]):
        one.pop("seconds")
    found.pop("folder")
    return {"result": found, "policies": rows, "dialogues": count}


def _is_at(place: str, wanted: str) -> bool:
    """Whether a place is the wanted one: run names end with a policy's version."""
    head, _, tail = wanted.partition(": ")
    if tail not in ("dialogues", "steps"):
        return place == wanted
    rest = place.removeprefix(head)
    return rest != place and place.endswith(tail) and not rest.startswith(("-candidate", "-promoted"))


def kills(folder: Path) -> dict[str, Any]:
    """The small loop unbroken, and killed at ten points."""

    def worker(name: str, kill: tuple[str, int] | None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.bench.bench_loop", "--worker", str(folder / name)]
        more = [] if kill is None else ["--kill", json.dumps(kill)]
        return subprocess.run([*command, *more], cwd=TOP, capture_output=True, text=True, check=False)

    whole = worker("whole", None)
    killed = [worker("killed", kill).returncode == -signal.SIGKILL for kill in KILLS]
    last = worker("killed", None)
    if whole.returncode or last.returncode:
        raise SystemExit(whole.stderr + last.stderr)
    found, expected = (json.loads(one.stdout.splitlines()[-1]) for one in (last, whole))
    return {
        "killed": sum(killed),
        "equal": found == expected,
        "promotions": expected["result"]["promotions"],
        "policies": len(expected["policies"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("gains", "shuffled", "no_op", "kills"))
    parser.add_argument("--out", type=Path, help="where the loops are kept, so that it goes on (default: nowhere)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    from transformers.utils import logging

    logging.disable_progress_bar()
    if given.worker is not None:
        print(json.dumps(small_loop(given.worker, given.kill)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Callable[[], Any]] = {
            "gains": lambda: measured(folder, mixed=False),
            "shuffled": lambda: measured(folder, mixed=True),
            "no_op": lambda: no_op(folder),
            "kills": lambda: kills(folder),
        }
        chosen = parts if given.part is None else {given.part: parts[given.part]}
        setting = {"turns": TURNS, "start": START, "seed": SEED, "rounds": ROUNDS}
        print(json.dumps({"benchmark": "loop", **setting, **{name: part() for name, part in chosen.items()}}))


if __name__ == "__main__":
    main()
