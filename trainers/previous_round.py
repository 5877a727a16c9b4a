"""What a round leaves for the next one, in the `credit` of its report.json: λ̂, how often each item was paid, the mean
reward, and how often that has fallen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON

from .item_tally import ItemKey
from .output_folder import REPORT


@dataclass(frozen=True, kw_only=True)
class PreviousRound:
    """The round before. `lam` is λ̂ and `rho2` what it follows from, None where its rollouts were too few to tell.
    `rates` are p̂ of the items, `mean` the mean reward with the base weights, `falls` how often it was below that of the
    round before since contrast weights are on."""

    lam: float | None = None
    rho2: float | None = None
    rates: Mapping[ItemKey, float] = field(default_factory=dict)
    mean: float | None = None
    falls: int = 0


def previous_round(folder: Path) -> PreviousRound | None:
    """The round whose policy is in the folder; None where its report says nothing of credit. Raises TrainError where it
    cannot be read."""
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        credit = report.get("credit") if isinstance(report, dict) else None
        if credit is None:
            return None
        estimate, contrast = credit.get("estimate") or {}, credit.get("contrast") or {}
        rates = {(one["turn"], str(one["item"])): _share(one["paid"]) for one in credit.get("rates", ())}
        return PreviousRound(
            lam=_share(estimate["lambda"]) if estimate else None,
            rho2=_share(estimate["rho2"]) if estimate else None,
            rates=rates,
            mean=_share(contrast["mean"]) if contrast.get("mean") is not None else None,
            falls=int(contrast.get("falls", 0)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TrainError(
            f"{path} cannot be read as the report of a round before ({type(error).__name__}: {error}); expected the"
            " report.json that GRPO wrote: name another folder, or leave previous out"
        ) from error


def round_before(previous: str | Path | None, model: Any) -> PreviousRound | None:
    """The round named, else the one that wrote the model's folder; None where there is none.

    Raises TrainError where the folder that was named holds nothing of the kind.
    """
    if previous is not None:
        found = previous_round(Path(previous))
        if found is None:
            raise TrainError(
                f"previous {str(previous)!r}: its report says nothing of credit; expected a folder that GRPO wrote at"
                " level lambda or auto, or with contrast weights"
            )
        return found
    if isinstance(model, str | Path) and (Path(model) / REPORT).is_file():
        return previous_round(Path(model))
    return None


def item_rates(rates: Mapping[ItemKey, float]) -> list[JSON]:
    """p̂ as they stand in the report."""
    return [{"turn": turn, "item": item, "paid": round(rate, 6)} for (turn, item), rate in rates.items()]


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is no number in [0, 1]")
    return float(value)


__all__ = ["PreviousRound", "item_rates", "previous_round", "round_before"]
