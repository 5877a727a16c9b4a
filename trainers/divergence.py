"""Runs that went astray: losses, gradients, weights and log-probabilities that are no numbers stop them before anything
is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from cm2_agent.errors import TrainingDiverged

from .rows import Floats

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class StopsWhenAstray(Trainer):
    """Mixed into a transformers Trainer: raises TrainingDiverged at a loss or gradient that is no number, before the
    optimizer takes the step.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        require_finite(float(loss), "loss", self.state.global_step + 1, self.args.learning_rate)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm)
        # A loss scaler (fp16) looks for infinite gradients by itself, and skips the step.
        if getattr(self.accelerator, "scaler", None) is None:
            require_finite(float(norm), "norm of the gradient", self.state.global_step + 1, self.args.learning_rate)
        return norm


def require_finite(value: float, name: str, step: int, learning_rate: float) -> None:
    """Raises TrainingDiverged where a figure of an optimizer step is NaN or infinite."""
    if math.isfinite(value):
        return
    raise TrainingDiverged(
        f"the {name} of step {step} is {value}; expected a number. Nothing was saved. Take a lower learning_rate (now"
        f" {learning_rate:g}), a longer warm-up (warmup_steps), or a lower max_grad_norm"
    )


def require_finite_weights(model: Any, learning_rate: float) -> None:
    """Raises TrainingDiverged where a weight is NaN or infinite, in a process's own part or another's."""
    for name, weights in model.named_parameters():
        wrong = (~torch.isfinite(weights.detach())).sum()
        if count := int(wrong.full_tensor() if isinstance(wrong, DTensor) else wrong):
            raise TrainingDiverged(
                f"{count} of {weights.numel()} weights of {name} are not finite after training; nothing was saved. Take"
                f" a lower learning_rate (now {learning_rate:g}), a longer warm-up (warmup_steps), or a lower"
                " max_grad_norm"
            )


def require_finite_logprobs(logprobs: Iterable[Floats], when: str) -> None:
    """Raises TrainingDiverged where the policy gives a token no log-probability that is a number; `when` says when."""
    for values in logprobs:
        if not np.isfinite(values).all():
            raise TrainingDiverged(
                f"the policy's own log-probabilities of the stored tokens are not finite {when}; nothing was saved."
                " Before training: its weights or logits are broken, load another checkpoint. After it: take a lower"
                " learning_rate"
            )
