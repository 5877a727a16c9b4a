"""TRL's SFTTrainer on rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import SFTTrainer

from cm2_agent.types.protocols import Progress

from .callbacks import ProgressCallback
from .policy import Policy
from .rows import Row
from .trl_mixin import TRLMixin


class RowSFTTrainer(TRLMixin, SFTTrainer):
    """SFTTrainer whose rows are tokens already."""


def sft_trainer(policy: Policy, rows: Sequence[Row], config: Any, progress: Progress | None) -> RowSFTTrainer:
    """The trainer of rows; their labels are the model's own tokens."""
    return RowSFTTrainer(
        model=policy.model,
        args=config,
        train_dataset=Dataset.from_dict(
            {"input_ids": [list(row.ids) for row in rows], "labels": [_labels(row) for row in rows]}
        ),
        processing_class=policy.tokenizer,
        callbacks=[ProgressCallback(progress)],
    )


def _labels(row: Row) -> list[int]:
    return [token if trained else -100 for token, trained in zip(row.ids, row.mask, strict=True)]
