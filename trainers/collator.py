"""The batches of TRL's GRPOTrainer as tensors: samples in, padded prompts, completions and masks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .rows import Floats, Row


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A row with what the loss needs of each of its model tokens, in order: arrays of shape (row.trained,).

    `advantages` is what multiplies the ratio (weights are already in it), `old` the logarithm of the ratio's
    denominator, `ref` the reference policy's log-probability where there is a KL term, `mu` the recorded one where the
    loss or a report compares with it.
    """

    row: Row
    advantages: Floats | None = None
    old: Floats | None = None
    ref: Floats | None = None
    mu: Floats | None = None


def collate(
    samples: Sequence[Sample], *, pad_id: int, device: Any = None, rows: int | None = None
) -> dict[str, torch.Tensor]:
    """What TRL's loss reads of these rows: B rows, prompts left padded, the rest right padded; with `rows`, so many
    rows, the last ones without a token.

    A row's prompt is what stands before its first model token; tool results and later prompts are part of the
    completion with tool_mask 0. Values of tokens outside the mask are 0, so that no ratio there can overflow.
    """
    if not samples:
        raise ValueError("no row to collate; expected at least one")
    rows = len(samples) if rows is None else rows
    firsts = [sample.row.spans[0].start for sample in samples]
    width_p = max(firsts)
    width_c = max(len(sample.row.ids) - first for sample, first in zip(samples, firsts, strict=True))
    prompt_ids = torch.full((rows, width_p), pad_id, dtype=torch.long)
    prompt_mask = torch.zeros((rows, width_p), dtype=torch.long)
    completion_ids = torch.full((rows, width_c), pad_id, dtype=torch.long)
    completion_mask = torch.zeros((rows, width_c), dtype=torch.long)
    tool_mask = torch.zeros((rows, width_c), dtype=torch.long)
    names = ("advantages", "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")
    floats = {name: torch.zeros((rows, width_c)) for name in names}
    for index, (sample, first) in enumerate(zip(samples, firsts, strict=True)):
        ids = torch.from_numpy(np.asarray(sample.row.ids).astype(np.int64))
        prompt_ids[index, width_p - first :] = ids[:first]
        prompt_mask[index, width_p - first :] = 1
        completion_ids[index, : len(ids) - first] = ids[first:]
        completion_mask[index, : len(ids) - first] = 1
        places = torch.from_numpy(sample.row.positions - first)
        tool_mask[index, places] = 1
        for name, values in zip(floats, (sample.advantages, sample.old, sample.ref, sample.mu), strict=True):
            if values is not None:
                floats[name][index, places] = torch.from_numpy(values).float()
    if all(sample.old is None for sample in samples):
        del floats["old_per_token_logps"]
    if all(sample.ref is None for sample in samples):
        del floats["ref_per_token_logps"]
    if all(sample.mu is None for sample in samples):
        del floats["sampling_per_token_logps"]
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "num_items_in_batch": tool_mask.sum(),
        **floats,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}
