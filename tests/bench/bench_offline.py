"""Training from stored rollouts, several times through the same ones: what the stored log-probabilities are worth, from
the policy that sampled and from others, and the decoupled against the direct objective; prints one JSON line.

Five policies of the lending desk each fill a SQLite store with scored rollouts, which are read back with
`store.groups(…)`. From there training begins with three policies:

- `own`: the one that sampled;
- `noisy`: the same with noise on its weights;
- `later`: one that has since learnt from a round of other tasks.

The arms train on the same rollouts in the same order, as many steps, each at the one of five learning rates that
served it best from `own` on another seed:

- `decoupled`: GRPO's default; the ratio is clipped around the policy that training begins with, and weighed by
  min(2, π_prox/μ);
- `renewed`: the same, with π_prox taken anew on every pass (from `own` alone);
- `direct`: the ratio is clipped around μ;
- `recomputed`: the policy that training begins with is taken for μ, as where log-probabilities are computed again by
  the trainer: a clip, and no weight;
- `ratio_1`: the policy of every step is taken for μ, as where log-probabilities are thrown away: neither clip nor
  weight; from `own` also at the learning rate of `decoupled` (`ratio_1_same_rate`).

For the last ones a stored log-probability is replaced by one so low that min(1, π_prox/μ) is 1 wherever it stands; all
else is the product's. No arm leaves out rollouts by their ratio, and none is stopped where its policy goes astray, so
that it can be measured.

python -m tests.bench.bench_offline [--out FOLDER] [--seeds 5] [--table]

A cell is a file of the folder; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

import torch  # noqa: E402 (after the path is set)

from cm2_agent.analysis.bootstrap import mean_interval  # noqa: E402 (after the path is set)
from cm2_agent.benchmarks.lending_desk.desk import lending_desk  # noqa: E402 (after the path is set)
from cm2_agent.compare.collector import collect  # noqa: E402 (after the path is set)
from cm2_agent.compare.trial import figures  # noqa: E402 (after the path is set)
from cm2_agent.models.loading import load_policy_model, load_tokenizer  # noqa: E402 (after the path is set)
from cm2_agent.store.sql_store import SQLStore  # noqa: E402 (after the path is set)
from cm2_agent.trainers.grpo import GRPO  # noqa: E402 (after the path is set)
from cm2_agent.types.group import Group  # noqa: E402 (after the path is set)
from cm2_agent.types.json_file import write_json  # noqa: E402 (after the path is set)

DESK = lending_desk()
STARTS = ("own", "noisy", "later")
TUNING = 901
"""The seed on which an arm's learning rate is chosen; it is not tested on."""
FORGOTTEN = -1000.0
"""What stands for a log-probability that was thrown away: under it every min(1, π_prox/μ) is 1."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the benchmark takes; the same numbers make the same cells."""

    start: str = "full"
    turns: int = 2
    tasks: int = 24
    group: int = 8
    rollouts_per_step: int = 48
    steps: int = 32
    learning_rates: tuple[float, ...] = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
    level: str = "turn"
    noise: float = 0.2
    evaluated: int = 192
    cold_start_steps: int | None = None


def arms(size: Size) -> Mapping[str, dict[str, Any]]:
    """GRPO's settings of each arm."""
    rollouts = size.tasks * size.group
    bare = {"importance_weighting": "decoupled", "max_weight": 1.0, "checks": 0}
    return {
        "decoupled": {},
        "renewed": {"rollouts_per_load": rollouts},
        "direct": {"importance_weighting": "direct"},
        "recomputed": bare,
        "ratio_1": {**bare, "rollouts_per_load": size.rollouts_per_step},
        "ratio_1_same_rate": {**bare, "rollouts_per_load": size.rollouts_per_step},
    }


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What carries out cells, in the folder `out`."""

    size: Size
    out: Path

    def policy(self, seed: int) -> Path:
        """The policy of a seed, which fills the store."""
        folder, size = self.out / "policies" / str(seed), self.size
        if not folder.exists():
            unfinished = folder.with_name(f".{seed}")
            shutil.rmtree(unfinished, ignore_errors=True)
            DESK.cold_start(
                unfinished, turns=size.turns, start=size.start, seed=seed, steps=size.cold_start_steps
            ).rename(folder)
        return folder

    def groups(self, seed: int, number: int = 0) -> list[Group]:
        """Scored rollouts of the policy of a seed, out of its store; another number is of other tasks."""
        size, name = self.size, f"round-{number}"
        path = self.out / "stores" / f"{seed}-{number}.db"
        if not path.exists():
            tasks = DESK.training(1000 * seed + number, size.turns, size.tasks)
            found = collect(DESK, self.policy(seed), tasks, group=size.group, seed=seed, name=name)
            unfinished = path.with_suffix(".part")
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.unlink(missing_ok=True)
            with SQLStore(f"sqlite:///{unfinished}") as store:
                rollouts = [rollout for group in found for rollout in group.rollouts]
                for rollout in rollouts:
                    store.save_trace(rollout.trace)
                store.save_scores(rollout.score for rollout in rollouts)
            unfinished.rename(path)
        with SQLStore(f"sqlite:///{path}", create=False) as store:
            return store.groups(checklist=DESK.checklist)

    def start(self, kind: str, seed: int) -> Path:
        """The policy that training begins with."""
        own = self.policy(seed)
        folder = self.out / "policies" / f"{kind}-{seed}"
        if kind == "own" or folder.exists():
            return own if kind == "own" else folder
        if kind == "later":
            self.train(own, folder, self.groups(seed, 1), max(self.size.learning_rates), {}, seed)
            return folder
        model = load_policy_model(own, trainable=True)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weights in model.parameters():
                if weights.dim() > 1:
                    weights += self.size.noise * weights.std() * torch.randn(weights.shape, generator=draws)
        unfinished = folder.with_name(f".{folder.name}")
        model.save_pretrained(unfinished)
        load_tokenizer(own).save_pretrained(unfinished)
        return unfinished.rename(folder)

    def train(
        self, policy: Path, out: Path, groups: Sequence[Group], rate: float, how: Mapping[str, Any], seed: int
    ) -> dict[str, Any]:
        """GRPO as an arm says; its report."""
        size = self.size
        if forgets(how):
            groups = [forgotten(group) for group in groups]
        grpo = GRPO(
            policy,
            out,
            level=size.level,
            steps=size.steps,
            rollouts_per_step=size.rollouts_per_step,
            learning_rate=rate,
            warmup_steps=2,
            seed=seed,
            ratio_band=None,
            max_kl=math.inf,
            **how,
        )
        grpo.train(groups)
        return grpo.report

    def evaluate(self, policy: Path, seed: int) -> dict[str, Any]:
        size = self.size
        tasks = DESK.heldout(0, size.turns, size.evaluated)
        return figures(collect(DESK, policy, tasks, seed=seed, name="evaluation"))

    def before(self, kind: str, seed: int) -> dict[str, Any]:
        """How a start does before training, once for all arms."""
        path = self.out / "before" / f"{kind}-{seed}.json"
        if not path.exists():
            write_json(path, self.evaluate(self.start(kind, seed), seed))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def cell(self, kind: str, arm: str, seed: int, rate: float) -> dict[str, Any]:
        """One training from start to end."""
        path = self.path(kind, arm, seed, rate)
        if not path.exists():
            began, before, scratch = time.process_time(), self.before(kind, seed), self.out / "work" / path.stem
            shutil.rmtree(scratch, ignore_errors=True)
            how = arms(self.size)[arm]
            report = self.train(self.start(kind, seed), scratch, self.groups(seed), rate, how, seed)
            known = not forgets(how)
            result = {
                "start": kind,
                "arm": arm,
                "seed": seed,
                "learning_rate": rate,
                "before": before,
                "after": self.evaluate(scratch, seed),
                "off_policy": report["off_policy"] if known else None,
                "off_policy_after": report["off_policy_after"] if known else None,
                "cpu_seconds": round(time.process_time() - began, 1),
            }
            shutil.rmtree(scratch)
            write_json(path, result)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def path(self, kind: str, arm: str, seed: int, rate: float) -> Path:
        """The file of a cell."""
        return self.out / "cells" / f"{kind}-{arm}-{rate:g}-{seed}.json"

    def rate(self, arm: str) -> float:
        """The learning rate under which the arm got the most reward on the tuning seed, from the policy that sampled;
        `recomputed` is `decoupled` there."""
        if arm in ("recomputed", "ratio_1_same_rate"):
            return self.rate("decoupled")
        rewards = self.tuned(arm)
        return max(rewards, key=lambda rate: (rewards[rate], -rate))

    def tuned(self, arm: str) -> dict[float, float]:
        """The reward on the tuning seed by learning rate."""
        return {rate: self.cell("own", arm, TUNING, rate)["after"]["reward"] for rate in self.size.learning_rates}

    def run(self, seeds: Sequence[int]) -> dict[str, Any]:
        """All cells; what they say."""
        rates = {arm: self.rate(arm) for arm in arms(self.size)}
        for seed in seeds:  # seed by seed, so that what is cut short has whole seeds
            for kind in STARTS:
                for arm in arms_from(kind, self.size):
                    self.cell(kind, arm, seed, rates[arm])
        return self.finished(seeds)

    def finished(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What the finished cells say: from each start the arms that have any, on the seeds that all of these have."""
        rates = {arm: self.rate(arm) for arm in arms(self.size)}
        starts = {}
        for kind in STARTS:
            done = {
                arm: {seed for seed in seeds if self.path(kind, arm, seed, rates[arm]).exists()}
                for arm in arms_from(kind, self.size)
            }
            own = [arm for arm, found in done.items() if found]
            common = sorted(set.intersection(*(done[arm] for arm in own))) if own else []
            if common and "decoupled" in own:
                starts[kind] = summary({arm: [self.cell(kind, arm, one, rates[arm]) for one in common] for arm in own})
        tuned = [arm for arm in arms_from("own", self.size) if arm != "ratio_1_same_rate"]
        return {"tuning": {arm: self.tuned(arm) for arm in tuned}, "starts": starts}


def arms_from(kind: str, size: Size) -> list[str]:
    """Those that are tried: from the policy that sampled, its own log-probabilities are the stored ones; what it is
    worth to renew π_prox, and what another learning rate does, are asked there alone."""
    left_out = ("recomputed",) if kind == "own" else ("renewed", "ratio_1_same_rate")
    return [arm for arm in arms(size) if arm not in left_out]


def forgets(how: Mapping[str, Any]) -> bool:
    """Whether an arm's rollouts have lost their log-probabilities."""
    return how.get("max_weight") == 1.0


def summary(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means over the seeds with their intervals (bootstrap over seeds), each arm against `decoupled` seed by seed."""
    stale = [cell["off_policy"] for cell in cells["decoupled"]]
    rows = {}
    for arm, own in cells.items():
        row: dict[str, Any] = {"learning_rate": own[0]["learning_rate"]}
        for name in ("reward", "success"):
            after, before = ([cell[when][name] for cell in own] for when in ("after", "before"))
            rival = [cell["after"][name] for cell in cells["decoupled"]]
            row[name] = interval(after)
            row[f"{name}_gain"] = interval([one - other for one, other in zip(after, before, strict=True)])
            if arm != "decoupled":
                pairs = zip(after, rival, strict=True)
                row[f"{name}_over_decoupled"] = interval([one - other for one, other in pairs])
        row["worse_than_start"] = sum(cell["after"]["reward"] < cell["before"]["reward"] for cell in own)
        after_kl = [cell["off_policy_after"] for cell in own if cell["off_policy_after"] is not None]
        row["kl_per_rollout_after"] = round(fmean(one["kl_per_rollout"] for one in after_kl), 2) if after_kl else None
        row["cpu_seconds"] = round(sum(cell["cpu_seconds"] for cell in own))
        rows[arm] = row
    return {
        "seeds": len(cells["decoupled"]),
        "before": {
            name: interval([cell["before"][name] for cell in cells["decoupled"]]) for name in ("reward", "success")
        },
        "kl_per_rollout": round(fmean(one["kl_per_rollout"] for one in stale), 2),
        "ratio_min": min(one["ratio_min"] for one in stale),
        "ratio_max": max(one["ratio_max"] for one in stale),
        "arms": rows,
    }


def interval(values: Sequence[float]) -> list[float]:
    """The mean of a value a seed, and the bounds of its 95 % interval."""
    mean, (low, high) = mean_interval(values)
    return [round(mean, 3), round(low, 3), round(high, 3)]


def table(found: Mapping[str, Any]) -> str:
    """The Markdown of docs/method.md."""
    lines = ["| start | arm | reward | gain | over decoupled | success |", "|---|---|---|---|---|---|"]
    for kind, start in found.items():
        mean, success, seeds = start["before"]["reward"][0], start["before"]["success"][0], start["seeds"]
        name = f"`{kind}`, {seeds} {'seed' if seeds == 1 else 'seeds'}, KL {start['kl_per_rollout']:.1f}"
        lines.append(f"| {name} | before | {mean:.2f} | | | {success:.2f} |")
        for arm, row in start["arms"].items():
            over = "" if arm == "decoupled" else spread(row["reward_over_decoupled"], seeds)
            cells = [f"{row['reward'][0]:.2f}", spread(row["reward_gain"], seeds), over, f"{row['success'][0]:.2f}"]
            lines.append(f"| | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tuning_table(tuned: Mapping[str, Mapping[float, float]]) -> str:
    """The reward on the tuning seed, a column a learning rate."""
    rates = list(next(iter(tuned.values())))
    lines = ["| arm | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (1 + len(rates)) + "|"]
    lines += [f"| {arm} | " + " | ".join(f"{own[rate]:.2f}" for rate in rates) + " |" for arm, own in tuned.items()]
    return "\n".join(lines)


def spread(values: Sequence[float], seeds: int) -> str:
    """A mean with its interval, which one seed does not have."""
    mean, low, high = values
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" if seeds > 1 else f"{mean:+.2f}"


def forgotten(group: Group) -> Group:
    """The group with every log-probability of its calls replaced."""
    rollouts = []
    for rollout in group.rollouts:
        runs = tuple(
            replace(
                run, calls=tuple(replace(call, logprobs=(FORGOTTEN,) * len(call.logprobs or ())) for call in run.calls)
            )
            for run in rollout.trace.runs
        )
        rollouts.append(replace(rollout, trace=replace(rollout.trace, runs=runs)))
    return replace(group, rollouts=tuple(rollouts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir()) / "cm2-offline", help="where finished cells are kept"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many policies are tested")
    parser.add_argument("--finished", action="store_true", help="what the finished cells say, without another")
    parser.add_argument("--table", action="store_true", help="the Markdown table instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = Size()
    check(given.out, size)
    bench = Bench(size=size, out=given.out)
    found = (bench.finished if given.finished else bench.run)(range(given.seeds))
    if given.table:
        print(tuning_table(found["tuning"]), table(found["starts"]), sep="\n\n")
    else:
        print(json.dumps({"benchmark": "offline", "seeds": given.seeds, "size": asdict(size), **found}))


def check(out: Path, size: Size) -> None:
    """Ends where the folder holds cells of other numbers."""
    mark, what = out / "size.json", asdict(size)
    if not mark.exists():
        write_json(mark, what)
    elif json.loads(mark.read_text(encoding="utf-8")) != json.loads(json.dumps(what)):
        sys.exit(f"{out} holds cells of another size ({mark.name}); give another folder with --out")


if __name__ == "__main__":
    main()
