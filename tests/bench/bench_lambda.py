"""Bias and noise of credit by λ, enumerated exactly on eight small trees (with and without a gate, a policy that copies
its turn before, and a choice that shows a turn late); prints one JSON line.

For each tree, each thing that V̂ may be a function of and each λ: `bias` is ‖E[update] − ∇J‖ / ‖∇J‖, `noise` the trace
variance of one rollout's update over that at λ = 1 with the turn's own mean, what level `return_to_go` comes near.
`raw` has no V̂: λ-weighted sums of the turns' rewards, less their mean by turn. `turn` is V̂ by the turn alone,
`verdicts` by the verdicts before it (what a regression on them comes near), `exact` by all that was chosen.

python -m tests.bench.bench_lambda [--table]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

from cm2_agent.trainers.episodes import generalized_advantages  # noqa: E402 (after the path is set)
from tests.trainers.trees import KNOWN, TREES, Dialogue, Tree  # noqa: E402 (after the path is set)

LAMBDAS = (0.0, 0.5, 0.8, 0.95, 1.0)
Credit = Callable[[Dialogue], Sequence[float]]


def raw(tree: Tree, lam: float) -> Credit:
    """Σ_k λ^k R_{t+k}/L less its mean over the dialogues that reach t."""

    def sums(one: Dialogue) -> np.ndarray:
        return generalized_advantages(np.array(one.rewards), np.zeros(len(one.rewards)), lam)

    total, chance = np.zeros(8), np.zeros(8)
    for one in tree.dialogues:
        for at, value in enumerate(sums(one)):
            total[at], chance[at] = total[at] + one.chance * value, chance[at] + one.chance
    mean = total / np.where(chance, chance, 1)
    return lambda one: (sums(one) - mean[: len(one.rewards)]).tolist()


def with_values(tree: Tree, known: str, lam: float) -> Credit:
    """GAE(λ) with V̂ = E[return | what is known]."""
    table, what = tree.values(KNOWN[known]), KNOWN[known]

    def credit(one: Dialogue) -> list[float]:
        values = np.array([table[at, what(one, at)] for at in range(len(one.rewards))])
        return generalized_advantages(np.array(one.rewards), values, lam).tolist()

    return credit


def expected(tree: Tree, credit: Credit) -> np.ndarray:
    return tree.expected_update(lambda group: [credit(group[0])], 1)


def measure(tree: Tree) -> dict[str, dict[str, list[float]]]:
    true = tree.gradient()
    unit = tree.trace_variance(with_values(tree, "turn", 1.0))
    found = {}
    for kind in ("raw", *reversed(tuple(KNOWN))):
        credits = [raw(tree, lam) if kind == "raw" else with_values(tree, kind, lam) for lam in LAMBDAS]
        updates = [expected(tree, credit) for credit in credits]
        found[kind] = {
            "bias": [round(float(np.linalg.norm(update - true) / np.linalg.norm(true)), 4) for update in updates],
            "noise": [round(tree.trace_variance(credit) / unit, 4) for credit in credits],
        }
    return found


COLUMNS = (
    ("raw", 0.0),
    ("raw", 0.8),
    ("verdicts", 0.0),
    ("verdicts", 0.8),
    ("exact", 0.0),
    ("exact", 0.8),
    ("exact", 1.0),
)


def table(found: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The Markdown of docs/method.md, bias / noise."""
    heads = [f"{kind}, λ {lam:g}" for kind, lam in COLUMNS]
    lines = ["| tree | " + " | ".join(heads) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for tree, kinds in found.items():
        cells = []
        for kind, lam in COLUMNS:
            at = LAMBDAS.index(lam)
            cells.append(f"{kinds[kind]['bias'][at]:.2f} / {kinds[kind]['noise'][at]:.2f}")
        lines.append(f"| {tree} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="the Markdown table instead")
    found = {tree.name: measure(tree) for tree in TREES}
    if parser.parse_args().table:
        print(table(found))
    else:
        print(json.dumps({"benchmark": "lambda", "lambdas": LAMBDAS, "trees": found}))


if __name__ == "__main__":
    main()
