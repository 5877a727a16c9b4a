"""Policies that collapsed: what they were trained to write became much less likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cm2_agent.errors import TrainingDiverged

from .collator import Sample, collate
from .dropout import evaluating
from .micro_batches import buckets
from .rows import Floats, Row
from .trained_logits import trained_logprobs

LIMIT = 1.0
"""Nats a token by which what is learnt may become less likely. Training makes it more likely: ordinary runs were seen
to lose 0.1 at most, those with a learning rate ten times too high 1 to 5, with one of 10 some thousand.
"""
PAIR_LIMIT = 3.0
"""The same for the better turn of a pair: DPO pulls the two apart, and often makes both less likely on the way."""


def reinforced(rows: Sequence[Row], before: Mapping[int, Floats], now: Mapping[int, Floats]) -> float:
    """By how many nats each the tokens with a positive advantage became less likely (all tokens, where none has one);
    `before` and `now` hold log π of a row's tokens by the `id` of the row.
    """
    known = [row for row in rows if id(row) in now]
    fell = np.concatenate([before[id(row)] - now[id(row)] for row in known])
    better = np.concatenate([row.token_advantages for row in known]) > 0
    return float(fell[better].mean() if better.any() else fell.mean())


@torch.no_grad()
def mean_logprob(trainer: Any, rows: Sequence[Row], pad_id: int) -> float:
    """The mean log π of the rows' trained tokens under the model of a TRL trainer, whose fused head is on it."""
    total = 0.0
    with evaluating(trainer.model), trainer.accelerator.autocast():
        for bucket in buckets([len(row.ids) for row in rows]):
            batch = collate([Sample(row=rows[index]) for index in bucket], pad_id=pad_id, device=trainer.args.device)
            logprobs, _, _ = trained_logprobs(
                trainer.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_mask"] * batch["tool_mask"],
                temperature=1.0,
                entropy=False,
            )
            total += float(logprobs.double().sum())
    return total / sum(row.trained for row in rows)


def require_sound(fell: float, limit: float, *, what: str, learning_rate: float, more: str = "") -> None:
    """Raises TrainingDiverged where `what` became less likely by more than `limit` nats a token."""
    if fell <= limit:
        return
    raise TrainingDiverged(
        f"the policy has collapsed: {what} became {fell:.3g} nats less likely, expected at most {limit:g} a token."
        f" Nothing was saved. Take a lower learning_rate (now {learning_rate:g}), a longer warm-up (warmup_steps) or"
        f" fewer steps{more}"
    )
