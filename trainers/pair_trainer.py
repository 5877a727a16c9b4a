"""TRL's DPOTrainer on pairs that are token ids already, with a mask for each token of a side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import DPOTrainer

from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .callbacks import ProgressCallback
from .dropout import switch_off_dropout
from .pair_rows import PairRow
from .policy import Policy
from .trl_mixin import TRLMixin

SIDES = ("chosen", "rejected")
FIGURES = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
"""What TRL logs, and its name in a report: the share of pairs whose better side gained more, and by how much (β·Δ)."""


class PairTrainer(TRLMixin, DPOTrainer):
    """DPOTrainer whose rows are tokens already."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [
            *(f"{side}_{column}" for side in SIDES for column in ("ids", "mask")),
            *(f"ref_{side}_logps" for side in SIDES),
        ]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The pairs with the reference's log-probabilities: those of the model as it is now, a batch at a time."""
        assert self.model is not None
        self.model.eval()
        columns = dataset[:]
        found: dict[str, list[float]] = {f"ref_{side}_logps": [] for side in SIDES}
        for start in range(0, len(dataset), batch_size):
            part = [
                {column: values[place] for column, values in columns.items()}
                for place in range(start, min(start + batch_size, len(dataset)))
            ]
            batch = self._prepare_inputs(self.data_collator(part))
            for column, values in zip(found, self.compute_ref_log_probs(self.model, batch), strict=True):
                found[column].extend(values.float().tolist())
        return Dataset.from_dict({**columns, **found})

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """Without any dropout: TRL takes out modules of that name alone, and attention has its own."""
        assert self.model is not None
        switch_off_dropout(self.model)
        self.model.training = True  # the flag alone: TRL tells its metrics of training by it
        return super()._compute_loss(model, inputs, return_outputs)


class PairCollator:
    """Pads a batch of pairs: first the chosen sides, then the rejected ones, as DPOTrainer reads them."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sides = [(one[f"{side}_ids"], one[f"{side}_mask"]) for side in SIDES for one in examples]
        longest = max(len(ids) for ids, _ in sides)
        found = {
            "input_ids": [ids + [self.pad_id] * (longest - len(ids)) for ids, _ in sides],
            "attention_mask": [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in sides],
            "completion_mask": [mask + [0] * (longest - len(mask)) for _, mask in sides],
        }
        batch = {name: torch.tensor(values) for name, values in found.items()}
        for name in (f"ref_{side}_logps" for side in SIDES):
            if name in examples[0]:
                batch[name] = torch.tensor([one[name] for one in examples])
        return batch


def pair_trainer(policy: Policy, pairs: Sequence[PairRow], config: Any, progress: Progress | None) -> PairTrainer:
    """The trainer; the reference's log-probabilities are taken here."""
    columns: dict[str, list[list[int]]] = {f"{side}_{column}": [] for side in SIDES for column in ("ids", "mask")}
    for pair in pairs:
        for side, row in zip(SIDES, pair.sides, strict=True):
            columns[f"{side}_ids"].append(list(row.ids))
            columns[f"{side}_mask"].append(list(row.mask))
    pad = policy.tokenizer.pad_token_id
    return PairTrainer(
        model=policy.model,
        args=config,
        data_collator=PairCollator(policy.tokenizer.eos_token_id if pad is None else pad),
        train_dataset=Dataset.from_dict(columns),
        processing_class=policy.tokenizer,
        callbacks=[ProgressCallback(progress)],
    )


def figures(trainer: PairTrainer) -> list[dict[str, JSON]]:
    """Loss, accuracy and margin of each optimizer step that was logged."""
    return [
        {ours: entry[theirs] for theirs, ours in FIGURES.items() if theirs in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
