"""The learning curve: what the policy did in each round, and on held-out customers before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def learning_curve(result: Mapping[str, Any], path: Path) -> Path:
    """Draw the result of a quickstart (the object that `--json` prints) as a PNG and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rounds, last = result["rounds"], len(result["rounds"])
    figure = Figure(figsize=(8.4, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    curve, kinds = figure.subplots(1, 2, width_ratios=(1.5, 1))
    at = [entry["round"] - 1 for entry in rounds]
    curve.plot(
        at, [entry["reward"] for entry in rounds], "o--", color="#8a8a8a", label="checklist reward, training rollouts"
    )
    curve.plot(at, [entry["success"] for entry in rounds], "o-", color="#2a6fbb", label="success, training rollouts")
    ends = (
        ("success", "#c1440e", "held-out success, temperature 1"),
        ("greedy", "#2e8b57", "held-out success, greedy"),
    )
    for key, colour, label in ends:
        values = [result["before"][key], result["after"][key]]
        low = [value - result[when][f"{key}_ci"][0] for value, when in zip(values, ("before", "after"), strict=True)]
        high = [result[when][f"{key}_ci"][1] - value for value, when in zip(values, ("before", "after"), strict=True)]
        curve.errorbar([0, last], values, yerr=[low, high], fmt="s", capsize=4, color=colour, label=label)
    curve.set(xlabel="rounds of training on stored traces", ylim=(-0.02, 1.02), xticks=range(last + 1))
    curve.legend(fontsize=7.5, loc="lower right")
    curve.grid(alpha=0.25)
    names = list(result["after"]["by_kind"])
    for shift, when, colour in ((-0.2, "before", "#c9b8a8"), (0.2, "after", "#c1440e")):
        heights = [result[when]["by_kind"].get(name, 0) for name in names]
        kinds.bar([place + shift for place in range(len(names))], heights, 0.38, color=colour, label=when)
    kinds.set(xticks=range(len(names)), ylim=(0, 1.15), title="held-out success by kind, temperature 1")
    kinds.set_xticklabels([name.replace("_", " ") for name in names], fontsize=8)
    kinds.set_title(kinds.get_title(), fontsize=9)
    kinds.legend(fontsize=7.5, loc="upper center", ncols=2)
    figure.suptitle(f"order-support desk, seed {result['seed']}, {result['heldout']} held-out tasks", fontsize=10)
    figure.savefig(path)
    return path
