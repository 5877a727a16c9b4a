"""The picture of a comparison: the success of each arm at the end, with its interval, beside the start's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {"sft": "#c1440e", "grp": "#2a6fbb"}


def draw(found: Mapping[str, Any], path: Path) -> Path | None:
    """Draw a summary as SVG and return its path; None while no pair is finished."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = {arm: row for arm, row in found["arms"].items() if row["pairs"]}
    if not rows:
        return None
    figure = Figure(figsize=(7.6, 0.9 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for place, (arm, row) in enumerate(reversed(rows.items())):
        low, high = row["success_interval"] or (row["success"], row["success"])
        axes.errorbar(
            [row["success"]],
            [place],
            xerr=[[max(0.0, row["success"] - low)], [max(0.0, high - row["success"])]],
            fmt="o",
            capsize=3,
            color=COLOURS.get(arm[:3], "#6a6a6a"),
        )
    if found["starts"] is not None:
        axes.axvline(found["starts"]["success"], color="#8a8a8a", linestyle="--", linewidth=1, label="start")
        axes.legend(fontsize=8, loc="lower right")
    axes.set(yticks=range(len(rows)), yticklabels=list(reversed(rows)), xlim=(-0.02, 1.02))
    axes.set_xlabel("held-out success after all rounds, 95 % interval over cold starts")
    axes.grid(axis="x", alpha=0.25)
    experiment = found["experiment"]
    figure.suptitle(f"{experiment['turns']} turns, start “{experiment['start']}”", fontsize=10)
    with rc_context({"svg.hashsalt": "cm2"}):  # the same picture for the same numbers
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path
