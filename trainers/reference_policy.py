"""The reference of the KL term where it follows the policy (`sync_ref_model`): a frozen copy, mixed with the policy
every so many steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from trl.trainer.callbacks import SyncRefModelCallback

from cm2_agent.errors import TrainError
from cm2_agent.models.adapters import is_peft

_PREFIX = "reference."


class ReferencePolicy:
    """π_ref, at first the policy as given."""

    def __init__(self, model: Any) -> None:
        if is_peft(model):
            raise TrainError(
                "sync_ref_model was given with an adapter, and the reference that follows it would be a second model in"
                " memory; leave sync_ref_model out, and beta pulls towards the policy as given, or train all weights"
            )
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    def callback(self, accelerator: Any) -> Any:
        """What mixes the policy in: π_ref ← α·π_θ + (1 − α)·π_ref, by TRL."""
        return SyncRefModelCallback(ref_model=self.model, accelerator=accelerator)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights, for a checkpoint."""
        return {_PREFIX + name: values for name, values in self.model.named_parameters()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The weights of a checkpoint."""
        with torch.no_grad():
            for name, values in self.model.named_parameters():
                values.copy_(tensors[_PREFIX + name])
