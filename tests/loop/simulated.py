"""A loop without a model: a policy is a file with a skill, its dialogues are drawn by it, and training adds to it.

As a program: `python -m tests.loop.simulated FOLDER [KILL]` runs the loop in FOLDER and is killed with SIGKILL at the
KILL-th call of its progress (0-based).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm2_agent import Message, ModelCall, Run, Score, SQLStore, Task, TurnScore
from cm2_agent.loop.loop import Loop
from cm2_agent.loop.rollouts import trace_id
from cm2_agent.loop.settings import LoopSettings
from cm2_agent.loop.task_sets import TaskSets
from cm2_agent.types.run_attributes import GROUP, ROLLOUT, TASK_ID, TASK_VERSION

REWARD = "simulated@1"


def policy(folder: Path, *, skill: float, version: str) -> str:
    """Write a policy: its skill is how often an item of a dialogue is paid."""
    folder.mkdir(parents=True)
    (folder / "policy.json").write_text(json.dumps({"skill": skill, "version": version}), encoding="utf-8")
    return str(folder)


def read(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "policy.json").read_text(encoding="utf-8"))
    return found


@dataclass(kw_only=True)
class SimulatedRollouts:
    """Dialogues of four items, each paid with the policy's skill. `pending` names tasks that a judge fails at, the
    first `failures` times that they are scored."""

    store: SQLStore
    pending: frozenset[str] = frozenset()
    failures: int = 0
    held: list[str] = field(default_factory=list)
    reward: str = REWARD

    def version(self, policy: str) -> str:
        return str(read(policy)["version"])

    def hold(
        self, policy: str, tasks: Sequence[Task], *, group: int, seed: int, name: str, advance: Callable[[], object]
    ) -> None:
        what = read(policy)
        for task in tasks:
            for number in range(group):
                id = trace_id(name, task, number)
                if not self.store.holds(id):
                    self.held.append(id)
                    self._store(id, task, number, name, what, seed)
                advance()

    def _store(self, id: str, task: Task, number: int, name: str, what: Mapping[str, Any], seed: int) -> None:
        draw = random.Random(f"{seed}:{task.id}:{number}:{what['version']}")
        worth = sum(draw.random() < what["skill"] for _ in range(4)) / 4
        call = ModelCall(
            span_id=id,
            message=1,
            model_version=what["version"],
            prompt_ids=(1,),
            completion_ids=(2, 3),
            logprobs=(-1.0, -1.0),
        )
        facts = {TASK_ID: task.id, TASK_VERSION: task.version, GROUP: name, ROLLOUT: number}
        messages = (Message.of("user", task.turns[0]), Message.of("assistant", str(worth)))
        run = Run(id=f"{id}#0", thread=id, messages=messages, calls=(call,), attributes=facts)
        self.store.save_dialogue([run], self._score(id, task, worth), {"won": float(worth == 1)})

    def score(self, ids: Sequence[str]) -> None:
        known = {one.trace_id for one in self.store.scores(REWARD, ids=ids) if one.lower is not None}
        for trace in self.store.traces(ids=[id for id in ids if id not in known]):
            task = Task(id=str(trace.task_id))
            self.store.save_score(self._score(trace.id, task, float(trace.messages[-1].text)))

    def _score(self, id: str, task: Task, worth: float) -> Score:
        if task.id in self.pending and self.failures:
            self.failures -= 1
            return Score(trace_id=id, reward_version=REWARD, reward=None, null_reason="judge failed")
        turns = (TurnScore(turn=0, reached=True, steps=1, reward=worth),)
        return Score(trace_id=id, reward_version=REWARD, reward=worth, turns=turns, lower=worth, upper=worth)


@dataclass(kw_only=True)
class SimulatedTraining:
    """Adds to the skill what a round's `gains` say."""

    gains: Sequence[float]
    trained: int = 0

    def __call__(
        self, policy: str, out: Path, groups: Iterable[Any], *, seed: int, advance: Callable[[], object]
    ) -> Mapping[str, Any]:
        before, rollouts = read(policy), sum(len(group.rollouts) for group in groups)
        number = int(out.name.removeprefix("round-"))
        advance()
        out.mkdir()
        (out / "half").write_text("written", encoding="utf-8")
        advance()
        skill = min(1.0, max(0.0, before["skill"] + self.gains[number - 1]))
        new = {"skill": skill, "version": f"{before['version']}.{number}"}
        (out / "policy.json").write_text(json.dumps(new), encoding="utf-8")
        self.trained += 1
        return {"steps": 2, "rollouts": rollouts}


def tasks(name: str, count: int) -> list[Task]:
    return [Task(id=f"{name}-{number}", turns=(f"{name} {number}?",)) for number in range(count)]


def loop(here: Path, store: SQLStore, *, gains: Sequence[float], skill: float = 0.4, **more: Any) -> Loop:
    """A loop in `here`/loop of as many rounds as gains; the first policy is made unless it is there."""
    start = here / "start"
    if not start.exists():
        policy(start, skill=skill, version="v0")
    settings = {"rounds": len(gains), "group": 4, "evaluations": 2, **more.pop("settings", {})}
    return Loop(
        **{
            "name": "desk",
            "start": str(start),
            "folder": here / "loop",
            "store": store,
            "tasks": TaskSets(training=tasks("train", 6), promotion=tasks("promote", 24), test=tasks("test", 24)),
            "rollouts": SimulatedRollouts(store=store),
            "train": SimulatedTraining(gains=gains),
            "settings": LoopSettings(**settings),
            **more,
        }
    )


def without_times(found: Mapping[str, Any]) -> dict[str, Any]:
    """A loop's result without what differs from one run to the next: times, and where it is."""
    rest = {name: value for name, value in found.items() if name not in ("seconds", "folder")}
    if "rounds" in rest:
        rest["rounds"] = [without_times(one) for one in rest["rounds"]]
    return rest


def main(folder: str, kill: str = "-1") -> None:
    calls = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal calls
        if calls == int(kill):
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    with SQLStore(f"sqlite:///{folder}/cm2.db") as store:
        found = loop(Path(folder), store, gains=(0.35, -0.3), progress=progress).run()
    print(json.dumps({**without_times(found), "calls": calls}))


if __name__ == "__main__":
    main(*sys.argv[1:])
