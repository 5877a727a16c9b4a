"""How a margin grows with the turns: the slope is the line's, its interval is over cold starts, and what cannot be
joined is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm2_agent.compare.slope import margin_slope, read_summary
from cm2_agent.errors import TrainError
from cm2_agent.types.json_file import write_json


def compared(turns: int, margins: dict[tuple[int, int], float], **changed: Any) -> dict[str, Any]:
    pairs = [[start, sampling, margin] for (start, sampling), margin in margins.items()]
    mean = sum(margins.values()) / len(margins) if margins else 0.0
    return {
        "experiment": {"turns": turns, "start": "partial"},
        "left": 0,
        "best": {"grpo": "grpo-turn", "sft": "sft-turn"},
        "grpo_over_sft": {"against": "sft-turn", "success": mean, "pairs": len(pairs), "by_pair": pairs},
        **changed,
    }


def on_a_line(turns: int, slope: float, noise: float, seed: int) -> dict[tuple[int, int], float]:
    random = np.random.default_rng(seed)
    by_start = random.normal(0.1 + slope * math.log(turns), noise, size=5)
    return {(start, sampling): float(by_start[start]) for start in range(5) for sampling in range(2)}


def test_margins_on_a_line_give_its_slope_exactly() -> None:
    found = margin_slope([compared(turns, on_a_line(turns, 0.2, 0.0, turns)) for turns in (10, 3, 6)])
    assert found["slope"] == pytest.approx(0.2)
    assert found["interval"] == pytest.approx([0.2, 0.2])
    assert [row["turns"] for row in found["margins"]] == [3, 6, 10]
    assert found["margins"][0] == {
        "turns": 3,
        "grpo": "grpo-turn",
        "sft": "sft-turn",
        "success": pytest.approx(0.1 + 0.2 * math.log(3)),
        "pairs": 10,
    }


def test_the_interval_is_over_starts_and_two_collections_of_one_start_do_not_narrow_it() -> None:
    twice = {turns: on_a_line(turns, 0.2, 0.1, turns) for turns in (3, 6, 10)}
    once = {turns: {pair: margin for pair, margin in pairs.items() if pair[1] == 0} for turns, pairs in twice.items()}
    found, same = (margin_slope([compared(turns, pairs) for turns, pairs in what.items()]) for what in (once, twice))
    assert (found["slope"], found["interval"]) == (same["slope"], same["interval"])
    assert found["interval"][0] < found["slope"] < found["interval"][1]


@pytest.mark.parametrize(
    ("summaries", "problem"),
    [
        ([compared(3, {(0, 0): 0.1})], "two or more"),
        ([compared(3, {(0, 0): 0.1}), compared(3, {(0, 0): 0.2})], "another number of turns"),
        (
            [compared(3, {(0, 0): 0.1}), compared(6, {(0, 0): 0.2}, experiment={"turns": 6, "start": "full"})],
            "all of one start",
        ),
        ([compared(3, {(0, 0): 0.1}), compared(6, {(0, 0): 0.2}, left=4)], "6 turns has 4 cells left"),
        ([compared(3, {(0, 0): 0.1}), compared(6, {}, grpo_over_sft=None)], "no pairs of GRPO and SFT"),
    ],
)
def test_what_cannot_be_joined_is_refused(summaries: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(TrainError, match=problem):
        margin_slope(summaries)


def test_a_summary_is_read_from_its_folder_and_one_without_its_pairs_is_refused(tmp_path: Path) -> None:
    written = compared(3, {(0, 0): 0.1})
    write_json(tmp_path / "comparison.json", written)
    assert read_summary(tmp_path) == written
    del written["grpo_over_sft"]["by_pair"]
    write_json(tmp_path / "comparison.json", written)
    with pytest.raises(TrainError, match="once more"):
        read_summary(tmp_path)
    with pytest.raises(TrainError, match="--out of cm2 compare"):
        read_summary(tmp_path / "none")
