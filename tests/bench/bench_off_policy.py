"""How often the 95 % intervals of off-policy evaluation cover the truth, which is known: on the eight enumerated trees
(and on tasks drawn among them), for policies from near to the refusal's limit, and on weights with heavy tails; prints
one JSON line.

A draw is 30 tasks of 8 rollouts, on which V̂ is fitted anew; 1,000 are drawn on the eight trees together, as many where
each task is of any of them, and as many of each kind of heavy tails. Of each policy: its distance (`effective`, the
expected share of effective rollouts), how many draws were `refused`, and of the others how often the interval of each
estimate covers (`gain_…`: that of its difference to the old policy); for comparison, how often those of the percentile
bootstrap and the cluster-robust t interval alone would. In `heavy` log ρ is normal, as of long dialogues, with
σ² = −log of the expected share, and moves with a reward that differs from task to task.

python -m tests.bench.bench_off_policy [--draws 1000] [--jobs 1] [--table]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

from cm2_agent.trainers.cluster_intervals import Figure, resampled  # noqa: E402 (after the path is set)
from cm2_agent.trainers.off_policy_values import (  # noqa: E402
    LEAST_SHARE,
    WeighedRollout,
    figures_of,
    off_policy_values,
)
from tests.trainers.other_policies import OtherPolicy, Sample, draw, episodes  # noqa: E402
from tests.trainers.trees import TREES, Tree  # noqa: E402

TASKS, SIZE = 30, 8
POLICIES: dict[str, Callable[[Tree], OtherPolicy]] = {
    "near": lambda tree: OtherPolicy.towards_right(tree, 0.5),
    "better": lambda tree: OtherPolicy.towards_right(tree, 1.5),
    "much better": lambda tree: OtherPolicy.towards_right(tree, 3.0),
    "worse": lambda tree: OtherPolicy.towards_right(tree, -1.5),
    "limit": OtherPolicy.at_the_limit,
}
HEAVY = [(sigma, base) for sigma in (1.0, 1.5) for base in (0.3, 0.05)]
FIGURES = ("self_normalised", "doubly_robust", "gain_self_normalised", "gain_doubly_robust")


class Coverage:
    """Counts how often intervals cover."""

    def __init__(self, truth: float, old: float) -> None:
        self.truth = dict(zip(FIGURES, (truth, truth, truth - old, truth - old), strict=True))
        self.draws = 0
        self._hits: Counter[str] = Counter()
        self._missed: list[float] = []

    def add(self, rollouts: Sequence[WeighedRollout]) -> None:
        self.draws += 1
        found = off_policy_values(rollouts)
        if found.share < LEAST_SHARE:
            self._hits["refused"] += 1
            return
        for name, truth in self.truth.items():
            one = getattr(found, name)
            self._count(name, one.low, one.high, truth)
        figures = figures_of(rollouts)
        for name in FIGURES[:2]:
            for kind, (low, high) in other_intervals(figures[name]).items():
                self._count(f"{kind} {name}", low, high, self.truth[name])

    def _count(self, name: str, low: float, high: float, truth: float) -> None:
        self._hits[name] += low - 1e-12 <= truth <= high + 1e-12

    def to_json(self) -> dict[str, Any]:
        used = max(1, self.draws - self._hits["refused"])
        others = [f"{kind} {name}" for kind in ("percentile", "t") for name in FIGURES[:2]]
        rates = {name: round(self._hits[name] / used, 4) for name in (*FIGURES, *others)}
        return {"draws": self.draws, "refused": round(self._hits["refused"] / self.draws, 4), **rates}


def other_intervals(figure: Figure) -> dict[str, tuple[float, float]]:
    """The intervals that are not used: the percentile bootstrap's, and the cluster-robust t interval."""
    (weights,) = resampled(TASKS, 0)
    low, high = np.quantile(figure.values(weights), [0.025, 0.975])
    half = float(stdtrit(TASKS - 1, 0.975)) * figure.error
    return {"percentile": (float(low), float(high)), "t": (figure.value - half, figure.value + half)}


def samples(world: Sequence[Tree], draws: int, seed: int = 0) -> Iterator[Sample]:
    """Draws of tasks, each of a tree of the world drawn at random."""
    rng = np.random.default_rng(seed)
    known = [episodes(tree) for tree in world]
    for _ in range(draws):
        which = rng.integers(len(world), size=TASKS).tolist()
        yield Sample.of([(at, draw(world[at], 1, SIZE, rng)[0]) for at in which], known)


def on_trees(world: Sequence[Tree], draws: int) -> dict[str, Any]:
    """Coverage by policy, on tasks of these trees."""
    policies = {name: [make(tree) for tree in world] for name, make in POLICIES.items()}
    old = float(np.mean([OtherPolicy.towards_right(tree, 0.0).worth for tree in world]))
    counted = {name: Coverage(float(np.mean([one.worth for one in own])), old) for name, own in policies.items()}
    for sample in samples(world, draws):
        for name, own in policies.items():
            counted[name].add(sample.weighed(own))
    shares = {name: 1 / float(np.mean([1 / one.share for one in own])) for name, own in policies.items()}
    return {
        name: {"effective": round(shares[name], 3), "truth": round(one.truth["self_normalised"], 4), **one.to_json()}
        for name, one in counted.items()
    }


def heavy(sigma: float, base: float, draws: int) -> dict[str, Any]:
    """Coverage where log ρ = σz − σ²/2, and a reward of 0 or 1 has the logit log(base/(1 − base)) + z + its task's u, z
    and u normal."""
    logit = math.log(base / (1 - base))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def worth(shift: float) -> float:
        chances = 1 / (1 + np.exp(-(logit + nodes[:, None] + shift + nodes[None, :])))
        return float(weights @ chances @ weights)

    counted, rng = Coverage(worth(sigma), worth(0.0)), np.random.default_rng(0)
    for _ in range(draws):
        z, u = rng.normal(size=(TASKS, SIZE)), rng.normal(size=(TASKS, 1))
        rewards = (rng.random((TASKS, SIZE)) < 1 / (1 + np.exp(-(logit + z + u)))).astype(np.float64)
        others = (rewards.sum(axis=1, keepdims=True) - rewards) / (SIZE - 1)
        logs = sigma * z - sigma**2 / 2
        rows = [
            WeighedRollout(task=f"t{task}", rewards_T=reward, values_T=value, log_ratios_T=log)
            for task, row in enumerate(zip(rewards, others, logs, strict=True))
            for reward, value, log in zip(*(one[:, None] for one in row), strict=True)
        ]
        counted.add(rows)
    return {"sigma": sigma, "base": base, "effective": round(math.exp(-(sigma**2)), 3), **counted.to_json()}


def pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The coverage over the draws of several worlds together."""
    used = [row["draws"] * (1 - row["refused"]) for row in rows]
    rates = [name for name in rows[0] if name not in ("effective", "truth", "draws", "refused")]
    draws = sum(row["draws"] for row in rows)
    return {
        "effective": [min(row["effective"] for row in rows), max(row["effective"] for row in rows)],
        "draws": draws,
        "refused": round(1 - sum(used) / draws, 4),
        **{name: round(float(np.average([row[name] for row in rows], weights=used)), 4) for name in rates},
    }


def table(found: dict[str, Any]) -> str:
    """The Markdown of docs/method.md."""
    heads = ["new policy", "effective share", "refused", "self-normalised", "doubly robust", "gains", "percentile", "t"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in found["pooled"].items():
        lines.append(_row(f"trees, {name}", "{:.2f} to {:.2f}".format(*row["effective"]), row))
    for name, row in found["trees"]["all"].items():
        lines.append(_row(f"tasks of all trees, {name}", f"{row['effective']:.2f}", row))
    for row in found["heavy"]:
        lines.append(_row(f"heavy tails, reward {row['base']:g}", f"{row['effective']:.2f}", row))
    return "\n".join(lines)


def _row(name: str, share: str, row: dict[str, Any]) -> str:
    def both(*names: str) -> str:
        return " / ".join(f"{row[one]:.3f}" for one in names)

    figures = [both("self_normalised"), both("doubly_robust"), both("gain_self_normalised", "gain_doubly_robust")]
    figures += [both(f"{kind} self_normalised", f"{kind} doubly_robust") for kind in ("percentile", "t")]
    return f"| {' | '.join([name, share, both('refused'), *figures])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="over the eight trees, and of each other world")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--table", action="store_true", help="the Markdown table instead")
    options = parser.parse_args()
    each = max(1, options.draws // len(TREES))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        trees = {tree.name: pool.submit(on_trees, (tree,), each) for tree in TREES}
        trees["all"] = pool.submit(on_trees, TREES, options.draws)
        tails = [pool.submit(heavy, sigma, base, options.draws) for sigma, base in HEAVY]
        worlds = {name: one.result() for name, one in trees.items()}
        found: dict[str, Any] = {
            "pooled": {name: pooled([worlds[tree.name][name] for tree in TREES]) for name in POLICIES},
            "trees": worlds,
            "heavy": [one.result() for one in tails],
        }
    least = {name: min(row[name] for row in found["pooled"].values()) for name in FIGURES}
    if options.table:
        print(table(found))
    else:
        print(json.dumps({"benchmark": "off_policy", "least": least, **found}))


if __name__ == "__main__":
    main()
