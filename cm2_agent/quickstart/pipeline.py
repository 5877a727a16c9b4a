"""The quickstart itself: cold start, then rounds of collect → score → train, and what the held-out customers say before
and after.

It uses only what any user of the package has: `run` with a store and a checklist, `store.groups`, `GRPO`. What it
simplifies of the paper: a policy of 0.4 M parameters, a scripted user, programmatic items in place of a judge, real
tools in place of simulated ones."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm2_agent.analysis.bootstrap import wilson
from cm2_agent.errors import StoreError
from cm2_agent.quickstart import app
from cm2_agent.quickstart.config import CONFIG, Config, RoundConfig
from cm2_agent.quickstart.tasks import heldout_tasks, training_tasks
from cm2_agent.rewards.scoring.checks import load_functions
from cm2_agent.runner.rollout import Result
from cm2_agent.runner.run import run
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_yaml import load_checklist
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    from cm2_agent.models.local import LocalChatModel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
SUCCESS = "success"
RESULT = "result.json"
AT_ONCE = 1024
"""Dialogues that advance together: more than a round has, so that each of its steps is one batch."""


def support_checklist() -> Checklist:
    """The bundled checklist, `support.yaml`, with its functions."""
    return load_checklist(
        str(files("cm2_agent.quickstart") / "support.yaml"), load_functions("cm2_agent.quickstart.checks")
    )


def worlds(task: Task) -> AbstractContextManager[Any]:
    """A fresh order desk for one dialogue, closed when it ends."""
    return closing(app.open_desk(task.metadata["book"]))


def verify(task: Task, desk: Any, trace: Trace) -> Mapping[str, float | None]:
    """What the app's own success function says; None for a dialogue that died, since nobody was served or failed
    then."""
    if trace.failure is not None:
        return {SUCCESS: None}
    replies = [next((step.message.text for step in reversed(turn.steps) if step.is_reply), "") for turn in trace.turns]
    return {SUCCESS: float(app.success(desk, task.metadata, replies))}


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """How a policy did on some dialogues: success and its 95 % interval, mean reward, success by kind of task."""

    n: int
    success: float
    interval: tuple[float, float]
    reward: float | None
    by_kind: Mapping[str, float]

    @classmethod
    def of(cls, results: Iterable[tuple[Task, Result]]) -> EvalResult:
        """A dialogue that died has no outcome and counts as not served: a customer would say the same."""
        served: dict[str, list[float]] = {}
        rewards: list[float] = []
        for task, (trace, score) in results:
            served.setdefault(task.metadata["kind"], []).append(trace.outcomes.get(SUCCESS) or 0.0)
            if score is not None and score.lower is not None:
                rewards.append(score.lower)
        every = [value for values in served.values() for value in values]
        return cls(
            n=len(every),
            success=sum(every) / len(every),
            interval=wilson(int(sum(every)), len(every)),
            reward=sum(rewards) / len(rewards) if rewards else None,
            by_kind={kind: round(sum(values) / len(values), 4) for kind, values in sorted(served.items())},
        )


class Quickstart:
    """One run of the quickstart in the folder `out`: `cm2.db`, a folder a policy, the picture, `result.json`.

    An interrupted run goes on where it stopped when it is started again with the same seed and folder; a finished one
    is refused with StoreError, as is a folder that another seed or configuration began."""

    def __init__(
        self,
        seed: int,
        out: Path,
        *,
        config: Config = CONFIG,
        heldout: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`heldout` bounds the number of held-out tasks (None: all); `config` is the quickstart's own unless a test
        asks for less."""
        self.seed, self.out, self.config = seed, out, config
        self.progress: Progress = progress or (lambda what, done, total: None)
        self.checklist = support_checklist()
        out.mkdir(parents=True, exist_ok=True)
        self.resumed = _claim(
            out, {"seed": seed, "config": content_hash(asdict(config)), "checklist": self.checklist.hash}
        )
        self.store = SQLStore(f"sqlite:///{out / 'cm2.db'}")
        self.training, self.heldout = training_tasks(seed), heldout_tasks(seed)[:heldout]

    def policy(self, number: int) -> Path:
        return self.out / f"policy-{number}"

    def start(self) -> Path:
        """Policy 0: the cold start, unless it is there already."""
        from cm2_agent.quickstart.policy import cold_start

        if not self.policy(0).exists():
            unfinished = cold_start(self.seed, self.out / ".cold-start", self.progress, self.config)
            unfinished.rename(self.policy(0))
        return self.policy(0)

    def collect(
        self, path: Path, tasks: Sequence[Task], name: str, *, group: int = 1, temperature: float = 1.0
    ) -> list[tuple[Task, Result]]:
        """Run the sample app with the policy in `path` on tasks; each dialogue is traced, stored and scored."""
        model = self._model(path, temperature)
        results = run(
            app.build_graph(model),
            tasks,
            group=group,
            checklist=self.checklist,
            store=self.store,
            context=worlds,
            verify=verify,
            allow_real=[tool.name for tool in app.TOOLS],
            concurrency=AT_ONCE,
            lockstep=True,
            seed=self.seed,
            name=f"{name}-seed-{self.seed}",
        )
        by_id = {task.id: task for task in tasks}

        async def drain(results: AsyncIterator[Result]) -> list[tuple[Task, Result]]:
            done: list[tuple[Task, Result]] = []
            async for trace, score in results:
                done.append((by_id[str(trace.task_id)], (trace, score)))
                self.progress(name, len(done), group * len(tasks))
            return done

        return asyncio.run(drain(results))

    def evaluate(self, path: Path, name: str) -> dict[str, Any]:
        """Success on the held-out tasks, sampled at temperature 1 and greedy, one dialogue a task each."""
        sampled = EvalResult.of(self.collect(path, self.heldout, f"held-out {name}"))
        greedy = EvalResult.of(self.collect(path, self.heldout, f"held-out {name} greedy", temperature=0.0))
        return {
            "success": sampled.success,
            "success_ci": list(sampled.interval),
            "greedy": greedy.success,
            "greedy_ci": list(greedy.interval),
            "reward": sampled.reward,
            "by_kind": dict(sampled.by_kind),
            "greedy_by_kind": dict(greedy.by_kind),
        }

    def round(self, number: int) -> dict[str, Any]:
        """Collect with policy `number - 1`, score, and train policy `number` on what is stored."""
        from cm2_agent.trainers.grpo import GRPO

        size = self.config.rounds
        chosen = _slice(self.training, (number - 1) * size.tasks, size.tasks)
        name = f"round {number}"
        measured = EvalResult.of(self.collect(self.policy(number - 1), chosen, name, group=size.group))
        groups = self.groups(number)
        report: dict[str, Any] = {}
        if not self.policy(number).exists():
            settings = grpo_settings(self.config.rounds, number)
            trainer = GRPO(self.policy(number - 1), self.policy(number), seed=self.seed * 1000 + number, **settings)
            trainer.train(groups, progress=lambda step, total, metrics: self.progress(f"{name} training", step, total))
            report = trainer.report
        return {
            "round": number,
            "rollouts": measured.n,
            "success": measured.success,
            "reward": measured.reward,
            **_short(report),
        }

    def groups(self, number: int) -> list[Any]:
        """The stored groups of round `number`, in the order of the tasks."""
        version = fingerprint_of(self.policy(number - 1))
        groups = self.store.groups(checklist=self.checklist, policy=version)
        own = [group for group in groups if group.key["group"] == f"round {number}-seed-{self.seed}"]
        return sorted(own, key=lambda group: group.task_id)

    def _model(self, path: Path, temperature: float) -> LocalChatModel:
        from cm2_agent.models.local import LocalChatModel

        return LocalChatModel.load(
            path, temperature=temperature, max_tokens=self.config.rounds.max_tokens, max_batch=AT_ONCE
        )

    def run(self) -> dict[str, Any]:
        """The whole of it; returns, and writes to `result.json`, what `cm2 quickstart --json` prints."""
        from transformers.utils import logging

        from cm2_agent.quickstart.plots import learning_curve

        logging.disable_progress_bar()  # a bar for each policy that is loaded, between those of `progress`
        start, cpu = time.monotonic(), time.process_time()
        before = self.evaluate(self.start(), "before")
        rounds = [self.round(number) for number in range(1, self.config.rounds.rounds + 1)]
        after = self.evaluate(self.policy(self.config.rounds.rounds), "after")
        result: dict[str, Any] = {
            "before": before,
            "after": after,
            "rounds": rounds,
            "heldout": len(self.heldout),
            "temperature": 1,
            "seed": self.seed,
            "seconds": round(time.monotonic() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "traces": self.store.health()["traces"],
            "store": f"sqlite:///{self.out / 'cm2.db'}",
            "policy": str(self.policy(len(rounds))),
            "resumed": self.resumed,  # then the times are of this part alone
        }
        result["picture"] = str(learning_curve(result, self.out / "learning-curve.png"))
        self.save(result)
        return result

    def save(self, result: dict[str, Any]) -> None:
        """Write what came of the run beside the store."""
        (self.out / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def grpo_settings(size: RoundConfig, number: int) -> dict[str, Any]:
    """The numbers of a round (1-based) as GRPO takes them."""
    return {
        "steps": size.steps,
        "rollouts_per_step": size.batch,
        "learning_rate": size.learning_rate(number),
        "warmup_steps": size.warmup,
        "max_weight": size.weight_cap,
        "args": {"epsilon": size.epsilon, "epsilon_high": size.epsilon_high},
    }


def fingerprint_of(path: Path) -> str:
    """The policy version that a model loaded from `path` reports."""
    from cm2_agent.models.local import LocalChatModel

    return LocalChatModel.load(path).model_version


def _claim(out: Path, what: Mapping[str, Any]) -> bool:
    """Mark the folder as this run's, or refuse it. True where an interrupted run of the same kind goes on."""
    if (out / RESULT).exists():
        look = f"cm2 show --store sqlite:///{out / 'cm2.db'}"
        raise StoreError(f"{out} holds a finished quickstart; give another folder with --out, or look at it: {look}")
    mark = out / "quickstart.json"
    begun = mark.exists()
    if begun and json.loads(mark.read_text(encoding="utf-8")) != what:
        raise StoreError(f"{out} was begun with another seed or version; give another folder with --out")
    mark.write_text(json.dumps(what), encoding="utf-8")
    return begun


def _slice(tasks: Sequence[Task], start: int, count: int) -> list[Task]:
    """`count` tasks from `start` on, beginning again at the end."""
    return [tasks[(start + offset) % len(tasks)] for offset in range(count)]


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("groups", "informative_groups", "trained_tokens") if key in report}
