"""The results of a comparison: learning rates chosen on the tuning seeds, and what the arms did on the test's pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from cm2_agent.analysis.bootstrap import mean_interval

from .arms import arm_of
from .experiment import Cell, Experiment

Results = Mapping[str, Mapping[str, Any]]
"""The results of finished cells by their keys."""


def chosen_rates(experiment: Experiment, results: Results) -> dict[str, float]:
    """For each arm whose tuning cells are all there the learning rate with the highest mean success at the end, between
    equals the one with the highest reward, then the lowest."""
    rates: dict[str, float] = {}
    for arm in experiment.arms:
        ranked = [(*worth, -rate) for rate, worth in _tuned(experiment, arm, results).items() if worth is not None]
        if len(ranked) == len(experiment.grid(arm)):
            rates[arm] = -max(ranked)[2]
    return rates


def best_of(family: str, experiment: Experiment, results: Results) -> str | None:
    """The arm of a family ("grpo" or "sft") that is to be held against the other family's: the best on the tuning seeds
    at its own learning rate, so that the test's pairs choose nothing. None while one is not tuned."""
    arms = [arm for arm in experiment.arms if arm_of(arm).family == family]
    rates = chosen_rates(experiment, results)
    if not arms or not all(arm in rates for arm in arms):
        return None
    return max(arms, key=lambda arm: _tuned(experiment, arm, results)[rates[arm]] or (0.0, 0.0))


def summary(experiment: Experiment, results: Results) -> dict[str, Any]:
    """What the finished cells say: for each arm its learning rate, figures and tokens, and how it compares with the
    best SFT arm, pair by pair; intervals are of 95 %, by the bootstrap over cold starts."""
    rates = chosen_rates(experiment, results)
    sft, grpo = best_of("sft", experiment, results), best_of("grpo", experiment, results)
    tested = list(experiment.test_cells(rates)) if len(rates) == len(experiment.arms) else []
    finished = {(cell.arm, cell.cold_start, cell.sampling): results[cell.key] for cell in tested if cell.key in results}
    rows = {arm: _row(arm, rates, finished, sft) for arm in experiment.arms}
    return {
        "experiment": experiment.to_json(),
        "cells": {"finished": len(results), "tune": len(list(experiment.tuning_cells())), "test": len(tested)},
        "starts": _starts(finished),
        "arms": rows,
        "best": {"sft": sft, "grpo": grpo},
        "grpo_over_sft": None if sft is None or grpo is None else _difference(finished, grpo, sft),
    }


def _tuned(experiment: Experiment, arm: str, results: Results) -> dict[float, tuple[float, float] | None]:
    """Mean success and reward on the tuning seeds by learning rate, None where a cell is missing."""
    found: dict[float, tuple[float, float] | None] = {}
    for rate in experiment.grid(arm):
        cells = [cell for cell in experiment.tuning_cells() if cell.arm == arm and cell.learning_rate == rate]
        if all(cell.key in results for cell in cells):
            after = [results[cell.key]["after"] for cell in cells]
            found[rate] = (fmean(one["success"] for one in after), fmean(one["reward"] for one in after))
        else:
            found[rate] = None
    return found


Finished = Mapping[tuple[str, int, int], Mapping[str, Any]]
"""Results of test cells by arm, cold start and sampling."""


def _row(arm: str, rates: Mapping[str, float], finished: Finished, sft: str | None) -> dict[str, Any]:
    own = {pair: result for (name, *pair_), result in finished.items() if name == arm for pair in [tuple(pair_)]}
    row: dict[str, Any] = {"learning_rate": rates.get(arm), "pairs": len(own)}
    if not own:
        return row
    starts = [pair[0] for pair in own]
    for name in ("success", "reward"):
        value, interval = mean_interval([float(result["after"][name]) for result in own.values()], starts)
        row |= {name: round(value, 4), f"{name}_interval": _rounded(interval)}
        gains = [float(result["after"][name]) - float(result["before"][name]) for result in own.values()]
        row[f"{name}_gain"] = round(fmean(gains), 4)
    row["over_sft"] = None if sft is None or arm == sft else _difference(finished, arm, sft)
    for name in ("sampled_tokens", "trained_tokens", "cpu_seconds"):
        row[name] = round(fmean(result[name] for result in own.values()))
    row["skipped_rounds"] = sum(
        one["trained"]["skipped"] is not None for result in own.values() for one in result["rounds"]
    )
    return row


def _difference(finished: Finished, arm: str, other: str) -> dict[str, Any] | None:
    """Success of an arm less another's from the same start with the same seed; None where no pair is finished."""
    pairs = [
        (start, sampling, float(result["after"]["success"]) - float(rival["after"]["success"]))
        for (name, start, sampling), result in finished.items()
        if name == arm and (rival := finished.get((other, start, sampling))) is not None
    ]
    if not pairs:
        return None
    value, interval = mean_interval([difference for *_, difference in pairs], [start for start, *_ in pairs])
    return {
        "against": other,
        "pairs": len(pairs),
        "success": round(value, 4),
        "interval": _rounded(interval),
        "by_pair": [[start, sampling, round(difference, 4)] for start, sampling, difference in pairs],
    }


def _starts(finished: Finished) -> dict[str, float] | None:
    """Means over the test's starts: held-out success and reward before, and what the first round's rollouts were
    like."""
    pairs = {(start, sampling): result for (_, start, sampling), result in finished.items()}
    if not pairs:
        return None
    first = [result["rounds"][0]["collected"] for result in pairs.values()]
    return {
        "success": round(fmean(result["before"]["success"] for result in pairs.values()), 4),
        "reward": round(fmean(result["before"]["reward"] for result in pairs.values()), 4),
        "full": round(fmean(one["full"] for one in first), 4),
        "best_turns": round(fmean(one["best_turns"] for one in first), 4),
    }


def _rounded(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [round(bound, 4) for bound in interval]


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """A summary as rows of text, the first of them the titles."""
    rows = [["arm", "lr", "pairs", "success", "gain", "reward", "over best SFT", "tokens drawn", "tokens trained"]]
    for arm, row in found["arms"].items():
        rate = row["learning_rate"]
        cells = [arm, "" if rate is None else f"{rate:g}", str(row["pairs"])]
        if row["pairs"]:
            over = row["over_sft"]
            cells += [
                _with_interval(row["success"], row["success_interval"]),
                f"{row['success_gain']:+.2f}",
                f"{row['reward']:.2f}",
                "" if over is None else _with_interval(over["success"], over["interval"], sign="+"),
                f"{row['sampled_tokens']:,}",
                f"{row['trained_tokens']:,}",
            ]
        rows.append([*cells, *[""] * (len(rows[0]) - len(cells))])
    return rows


def _with_interval(value: float, interval: Sequence[float] | None, sign: str = "") -> str:
    bounds = "" if interval is None else f" ({interval[0]:{sign}.2f} to {interval[1]:{sign}.2f})"
    return f"{value:{sign}.2f}{bounds}"


def pending(experiment: Experiment, results: Results) -> list[Cell]:
    """The cells that are left, in the order in which they are carried out: those of the test once all is tuned."""
    tuning = [cell for cell in experiment.tuning_cells() if cell.key not in results]
    rates = chosen_rates(experiment, results)
    if tuning or len(rates) < len(experiment.arms):
        return tuning
    return [cell for cell in experiment.test_cells(rates) if cell.key not in results]
