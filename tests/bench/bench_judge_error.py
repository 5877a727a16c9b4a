"""The judge-error budget: how much of a policy's gain survives verdicts that are wrong, by level of credit. Tests the
paper's Fig. 3a: is credit a trajectory more robust than credit a step?

    OMP_NUM_THREADS=1 python tests/bench/bench_judge_error.py --out runs/judge-error
    OMP_NUM_THREADS=1 python tests/bench/bench_judge_error.py --out runs/judge-error-quick --quick

The grid has 81 cells of about 15 CPU-s each; started again with the same folder, it goes on where it stopped.

For each of 3 seeds the sample app's cold start plays round 1, once. Then the *stored* verdicts are made wrong at a rate
e, one GRPO pass of round 1's size is trained on them at each level, and the policy meets the held-out customers at
temperature 1.

- `symmetric`: every verdict that a judge would have given is turned round with probability e, each alone.
- `biased`: a judge too lenient on one item: its false verdicts are called true with probability e; all others are
  right.

What is turned round is the answer before the rule of dependencies (the items' own, from a checklist without
dependencies); dependencies, payments and turn rewards then follow by `rewards.shaping`. A verdict wrongly true says of
a reach item that it held from a step drawn evenly, of others from the last. Simplified: the rollouts are those that the
right gate let through, and error is independent of what the dialogue looks like, which a real judge's is not."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cm2_agent.quickstart.config import CONFIG, Config
from cm2_agent.quickstart.pipeline import EvalResult, Quickstart, grpo_settings
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.rewards.scoring.shaping import (
    ItemColumn,
    Share,
    apply_dependencies,
    paid_items,
    stored_reward,
    turn_reward,
)
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.group import Group
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace

ERRORS = (0.0, 0.05, 0.1, 0.2, 0.3)
LEVELS = ("trajectory", "return_to_go", "step")
KINDS = ("symmetric", "biased")
SEEDS = (0, 1, 2)
BIASED = "tells_what_was_found"
QUICK: Config = replace(
    CONFIG,
    cold_start=replace(CONFIG.cold_start, drill_steps=20, steps=40, demonstrations=80),
    rounds=replace(CONFIG.rounds, tasks=8, group=4, steps=2, batch=16),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One policy to train: what was wrong with its verdicts, and the level of its credit."""

    kind: str
    error: float
    level: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.error:g}-{self.level}-{self.seed}"


def cells(errors: Sequence[float] = ERRORS, kinds: Sequence[str] = KINDS, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """The grid; without error the kinds are one."""
    pairs = [("none", 0.0)] * (0.0 in errors) + [(kind, error) for kind in kinds for error in errors if error > 0]
    return [
        Cell(kind=kind, error=error, level=level, seed=seed)
        for seed in seeds
        for kind, error in pairs
        for level in LEVELS
    ]


class WrongJudge:
    """Scores traces by a checklist, with verdicts turned round at a rate; seeded, and the same for the same trace."""

    def __init__(self, checklist: Checklist, kind: str, error: float, seed: int) -> None:
        self.checklist, self.kind, self.error, self.seed = checklist, kind, error, seed
        self.plain = ChecklistScorer(
            Checklist(*map(_independent, checklist), name=checklist.name, version=checklist.version)
        )
        self.seen = self.turned = 0

    def score(self, trace: Trace, right: Score) -> Score:
        """The score as the wrong judge would have left it; `right` is the stored one."""
        own = self.plain.score_sync(trace)
        rng = random.Random(f"{self.seed}:{self.kind}:{self.error}:{trace.id}")
        turns = tuple(self._turn(turn, answers, rng) for turn, answers in zip(right.turns, own.turns, strict=True))
        if right.reward is None:
            return replace(right, turns=turns)
        reward, version = stored_reward(list(map(Share.of, (turn.verdicts for turn in turns)))), right.reward_version
        named = f"{version};{self.kind}={self.error:g}"
        return replace(right, turns=turns, reward=reward, lower=None, upper=None, reward_version=named)

    def _turn(self, turn: TurnScore, own: TurnScore, rng: random.Random) -> TurnScore:
        if not turn.reached or not turn.steps:
            return turn
        deps = [verdict.depends_on for verdict in turn.verdicts]
        columns = apply_dependencies([self._column(answer, turn.steps, rng) for answer in own.verdicts], deps)
        payments = paid_items([column.first_true_step for column in columns], deps)
        verdicts = tuple(
            replace(
                verdict,
                value=column.value,
                step=column.first_true_step,
                paid=None if column.value is None else one,
                reason=column.reason,
                cause=column.cause,
                explanation=None,
                evidence=(),
            )
            for verdict, column, one in zip(turn.verdicts, columns, payments, strict=True)
        )
        whole = all(column.value is not None for column in columns)
        return replace(
            turn,
            verdicts=verdicts,
            reward=turn_reward(payments, [verdict.weight for verdict in verdicts]) if whole else None,
        )

    def _column(self, answer: Verdict, steps: int, rng: random.Random) -> ItemColumn:
        column = ItemColumn(value=answer.value, first_true_step=answer.step, reason=answer.reason, cause=answer.cause)
        draw, at = rng.random(), rng.randint(1, steps)  # drawn for every item alike, so that rates share their draws
        if answer.value is None or answer.reason is not None:
            return column  # not judged: cut off by a limit, or a check that failed
        self.seen += 1
        may = self.kind == "symmetric" or (answer.item == BIASED and not answer.value)
        if not may or draw >= self.error:
            return column
        self.turned += 1
        if answer.value:
            return ItemColumn(value=False)
        return ItemColumn(
            value=True, first_true_step=at if self.checklist.by_id[answer.item].kind == "reach" else steps
        )

    def groups(self, groups: Sequence[Group]) -> list[Group]:
        return [
            replace(
                group,
                rollouts=tuple(
                    replace(rollout, score=self.score(rollout.trace, rollout.score)) for rollout in group.rollouts
                ),
            )
            for group in groups
        ]


def run_cell(cell: Cell, quickstart: Quickstart, groups: Sequence[Group]) -> dict[str, Any]:
    """Train and measure one policy."""
    started = time.process_time()
    judge = WrongJudge(quickstart.checklist, cell.kind, cell.error, cell.seed)
    wrong = list(groups) if cell.error == 0 else judge.groups(groups)
    out = quickstart.out / cell.name
    if not out.exists():
        settings = grpo_settings(quickstart.config.rounds, 1)
        GRPO(quickstart.policy(0), out, level=cell.level, seed=cell.seed * 1000 + 1, **settings).train(wrong)
    found = EvalResult.of(quickstart.collect(out, quickstart.heldout, f"held-out {cell.name}"))
    return {
        **asdict(cell),
        "success": found.success,
        "n": found.n,
        "flipped": round(judge.turned / judge.seen, 4) if judge.seen else 0.0,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def run_grid(out: Path, grid: Sequence[Cell], config: Config, heldout: int | None) -> dict[str, Any]:
    """Every cell that the cache (`cells.jsonl` in `out`) does not hold yet; each is written as soon as it is known."""
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "cells.jsonl"
    known = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()] if cache.exists() else []
    done = {_key(row): row for row in known}
    for seed in dict.fromkeys(cell.seed for cell in grid):
        mine = [cell for cell in grid if cell.seed == seed and _key(asdict(cell)) not in done]
        before = {"kind": "before", "error": 0.0, "level": "none", "seed": seed}
        if not mine and _key(before) in done:
            continue
        quickstart = Quickstart(seed, out / f"seed-{seed}", config=config, heldout=heldout)
        start = quickstart.start()
        size = config.rounds
        quickstart.collect(start, quickstart.training[: size.tasks], "round 1", group=size.group)
        groups = quickstart.groups(1)
        if _key(before) not in done:
            measured = EvalResult.of(quickstart.collect(start, quickstart.heldout, "held-out before"))
            done[_key(before)] = _keep(cache, {**before, "success": measured.success, "n": measured.n})
        for cell in mine:
            done[_key(asdict(cell))] = _keep(cache, run_cell(cell, quickstart, groups))
    seeds = {cell.seed for cell in grid}
    return summary([row for row in done.values() if row["seed"] in seeds])


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most success over the seeds, by kind, level and error."""
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for kind in KINDS:
        for level in LEVELS:
            for error in sorted({row["error"] for row in rows}):
                found = [
                    row["success"]
                    for row in rows
                    if row["level"] == level and row["error"] == error and row["kind"] == (kind if error else "none")
                ]
                if found:
                    cell = {
                        "mean": round(sum(found) / len(found), 4),
                        "low": min(found),
                        "high": max(found),
                        "seeds": len(found),
                    }
                    table.setdefault(kind, {}).setdefault(level, {})[f"{error:g}"] = cell
    before = [row["success"] for row in rows if row["kind"] == "before"]
    cpu = sum(row.get("cpu_seconds", 0) for row in rows)
    return {
        "bench": "judge_error",
        "cells": sum(row["kind"] != "before" for row in rows),
        "before": round(sum(before) / len(before), 4),
        "heldout": rows[0]["n"],
        "cpu_seconds": round(cpu, 1),
        "success": table,
    }


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Held-out success against the rate of wrong verdicts, a panel a kind, a line a level with its spread over the
    seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(KINDS), sharey=True)
    titles = {"symmetric": "verdicts turned round at random", "biased": f"too lenient on {BIASED}"}
    for panel, kind in zip(panels, KINDS, strict=True):
        for level, colour in zip(LEVELS, ("#2a6fbb", "#2e8b57", "#c1440e"), strict=True):
            points = result["success"].get(kind, {}).get(level, {})
            at = [100 * float(error) for error in points]
            panel.plot(
                at, [point["mean"] for point in points.values()], "o-", color=colour, label=level.replace("_", " ")
            )
            low, high = ([point[end] for point in points.values()] for end in ("low", "high"))
            panel.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.axhline(result["before"], color="#8a8a8a", linestyle="--", label="before training")
        panel.set(xlabel="wrong verdicts, %", title=titles[kind], ylim=(0, 1.02))
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("held-out success")
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _independent(item: Item) -> Item:
    decided = isinstance(item.check, Mapping) and item.kind == "hold"  # such checks have no kind to be given
    return Item(
        item.id,
        item.question,
        check=item.check,
        turn=item.turn,
        kind=None if decided else item.kind,
        weight=item.weight,
    )


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["kind"], row["error"], row["level"], row["seed"]


def _keep(cache: Path, row: dict[str, Any]) -> dict[str, Any]:
    with cache.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out success against wrong verdicts, by level of credit.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/judge-error"), help="folder of stores, policies and the cache of cells"
    )
    parser.add_argument("--plot", type=Path, default=None, help="the picture (default: judge-error.png in --out)")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny grid with tiny settings: shows that it runs, and nothing else"
    )
    given = parser.parse_args()
    if given.quick:
        result = run_grid(given.out, cells(errors=(0.0, 0.3), seeds=(0,)), QUICK, 12)
    else:
        result = run_grid(given.out, cells(), CONFIG, None)
    result["picture"] = str(draw(result, given.plot or given.out / "judge-error.png"))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
