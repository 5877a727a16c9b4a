"""The slope of a margin: how far GRPO is ahead of SFT in comparisons of dialogues of different lengths."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cm2_agent.analysis.bootstrap import bootstrap
from cm2_agent.errors import TrainError

Summary = Mapping[str, Any]
"""A comparison's summary, as `comparison.json` has it."""


def margin_slope(summaries: Sequence[Summary]) -> dict[str, Any]:
    """The least-squares slope of the margin (success of the best GRPO arm less the best SFT arm's, pair by pair) on the
    logarithm of the turns, with its 95 % interval by the bootstrap over cold starts.

    Returns:
        `slope` (success per e-fold of turns), `interval` (None where the starts do not carry one), and `margins`: a
        row a comparison with `turns`, `grpo`, `sft`, `success` and `pairs`.

    Raises:
        TrainError: a comparison is not finished or has no such pair, two are of the same number of turns or of
            different starts, or there is only one.

    >>> def of(turns, margin):
    ...     over = {"against": "sft-turn", "success": margin, "by_pair": [[0, 0, margin], [1, 0, margin]], "pairs": 2}
    ...     return {"experiment": {"turns": turns, "start": "partial"}, "left": 0, "grpo_over_sft": over,
    ...             "best": {"grpo": "grpo-turn", "sft": "sft-turn"}}
    >>> round(margin_slope([of(3, 0.1), of(6, 0.2)])["slope"] * math.log(2), 3)
    0.1
    """
    starts = {str(one["experiment"]["start"]) for one in summaries}
    lengths = [int(one["experiment"]["turns"]) for one in summaries]
    if len(starts) != 1 or len(set(lengths)) != len(lengths) or len(lengths) < 2:
        raise TrainError(
            f"comparisons of {', '.join(map(str, lengths))} turns from the starts {', '.join(sorted(starts))}; a slope"
            " needs two or more, each of another number of turns and all of one start"
        )
    for one, turns in zip(summaries, lengths, strict=True):
        if one["left"] or not one["grpo_over_sft"]:
            raise TrainError(
                f"the comparison of {turns} turns has {one['left']} cells left and"
                f" {'no' if not one['grpo_over_sft'] else 'its'} pairs of GRPO and SFT; finish it first"
            )
    points = [
        (math.log(turns), float(margin), (turns, start))
        for one, turns in zip(summaries, lengths, strict=True)
        for start, _, margin in one["grpo_over_sft"]["by_pair"]
    ]
    clusters = {name: place for place, name in enumerate(dict.fromkeys(name for *_, name in points))}
    x, y = np.asarray([one[0] for one in points]), np.asarray([one[1] for one in points])
    code = np.asarray([clusters[name] for *_, name in points])

    def slope(weights: Any) -> float | None:
        weight = weights[code]
        if not weight.any():
            return None
        x_mean, y_mean = np.average(x, weights=weight), np.average(y, weights=weight)
        spread = float(weight @ (x - x_mean) ** 2)
        return None if spread < 1e-12 else float(weight @ ((x - x_mean) * (y - y_mean))) / spread

    found, interval = slope(np.ones(len(clusters))), bootstrap(slope, len(clusters))
    return {
        "slope": None if found is None else round(found, 4),
        "interval": None if interval is None else [round(bound, 4) for bound in interval],
        "margins": [
            {"turns": turns, **one["best"], **{key: one["grpo_over_sft"][key] for key in ("success", "pairs")}}
            for one, turns in sorted(zip(summaries, lengths, strict=True), key=lambda pair: pair[1])
        ],
    }


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of the comparison in a folder. Raises TrainError where there is none."""
    file = folder / "comparison.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainError(f"{file}: not a comparison's summary: {error}; expected the --out of cm2 compare") from error
    if not isinstance(found, dict) or "by_pair" not in (found.get("grpo_over_sft") or {"by_pair": None}):
        raise TrainError(f"{file} does not say its pairs; run cm2 compare on that folder once more")
    return found
