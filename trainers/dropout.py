"""Dropout off: the policy whose ratios are taken is the one that sampled, and it sampled without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer


def switch_off_dropout(model: Any) -> None:
    """Puts every module within the model into evaluation mode, until its `train` is called; gradients flow as before.

    The model itself stays in training mode, by which TRL knows that it trains. So do layers that are computed anew in
    backward, which they are in that mode alone, except while they compute.
    """
    model.eval()
    for one in (model, getattr(model, "module", None)):  # with what wraps it for several processes
        if one is not None:
            one.training = True
    for layer in _recomputed(model):
        layer.training = True
        if not isinstance(layer._gradient_checkpointing_func, _InEvaluation):
            layer._gradient_checkpointing_func = _InEvaluation(layer, layer._gradient_checkpointing_func)


def restore_dropout(model: Any) -> None:
    """Undoes what `switch_off_dropout` put on the layers; the mode is for the caller to set."""
    for layer in _recomputed(model):
        if isinstance(layer._gradient_checkpointing_func, _InEvaluation):
            layer._gradient_checkpointing_func = layer._gradient_checkpointing_func.checkpoint


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode, and in the mode it was in afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _recomputed(model: Any) -> list[Any]:
    return [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]


class _InEvaluation:
    """A checkpointing function under which a layer computes in evaluation mode, both times."""

    def __init__(self, layer: Any, checkpoint: Callable[..., Any]) -> None:
        self.layer, self.checkpoint = layer, checkpoint

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def quietly(*given: Any, **named: Any) -> Any:
            before, self.layer.training = self.layer.training, False
            try:
                return forward(*given, **named)
            finally:
                self.layer.training = before

        return self.checkpoint(quietly, *args, **kwargs)
