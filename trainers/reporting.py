"""What trackers and `log_completions` get of each optimizer step of GRPO; nothing is computed unless asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .collator import Sample
from .off_policy import measure
from .processes import from_all

OFF_POLICY = ("ess_sequence", "ess_token", "kl_per_token", "truncated_tokens")
"""Figures of docs/method.md §6 that are reported a step, of the policy before it against the one that sampled."""


class StepReports:
    """Collects the figures of optimizer steps, between one log and the next."""

    def __init__(self, *, max_weight: float) -> None:
        self._max_weight = max_weight
        self._parts: list[tuple[Any, Any, Any, Any]] = []
        self._rows = 0
        self._steps: dict[str, list[float]] = defaultdict(list)

    def add(self, logps: torch.Tensor, batch: Mapping[str, Any]) -> None:
        """log π_θ of a micro-batch, (B, T), with its masks, advantages and the recorded log μ."""
        mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
        row = torch.nonzero(mask)[:, 0] + self._rows
        self._rows += mask.shape[0]
        now, mu, advantages = (
            one[mask].double().cpu().numpy() for one in (logps, batch["sampling_per_token_logps"], batch["advantages"])
        )
        self._parts.append((now, mu, advantages, row.cpu().numpy()))

    def close(self, figures: Mapping[str, float], lists: Mapping[str, Sequence[float]]) -> None:
        """Ends an optimizer step: `figures` are those of the step, `lists` what TRL noted for each micro-batch."""
        for name, listed in lists.items():
            known = [value for value in listed if value == value]
            if known and name not in figures:
                self._steps[name].append(sum(known) / len(known))
        for name, value in figures.items():
            if name != "loss":  # which TRL reports by itself
                self._steps[name].append(value)
        parts = [
            (*values, rows + place * 2**32)  # rows of other processes have the same numbers
            for place, found in enumerate(from_all(self._parts))
            for *values, rows in found
        ]
        if parts:
            now, mu, advantages, rows = (np.concatenate(one) for one in zip(*parts, strict=True))
            found = measure(now, mu, advantages, rows, max_weight=self._max_weight).to_json()
            for name in OFF_POLICY:
                self._steps[f"off_policy/{name}"].append(found[name])
        self._parts, self._rows = [], 0

    def flush(self, into: dict[str, list[float]]) -> None:
        """Hands over what was collected, a value a step, for TRL to take the means."""
        into.update({name: list(values) for name, values in self._steps.items()})
        self._steps.clear()


def completions(samples: Sequence[Sample], tokenizer: Any, rewards: Mapping[str, float | None]) -> dict[str, Any]:
    """The table of `log_completions` for the rows of a load, as TRL's trainer keeps it: a row's prompt is what stands
    before its first model token.
    """
    firsts = [sample.row.spans[0].start for sample in samples]
    ids = [list(sample.row.ids) for sample in samples]
    return {
        "images": [],
        "prompt": [tokenizer.decode(one[:first]) for one, first in zip(ids, firsts, strict=True)],
        "completion": [tokenizer.decode(one[first:]) for one, first in zip(ids, firsts, strict=True)],
        "rewards": {"reward": [rewards.get(sample.row.trace_id) for sample in samples]},
        "advantages": [float(np.mean(sample.row.token_advantages)) for sample in samples],
        "extra": {"trace": [sample.row.trace_id for sample in samples]},
    }
