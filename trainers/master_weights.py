"""Float32 master weights: what the optimizer of a half-precision model steps on, while the model stays as it is
sampled from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from cm2_agent.errors import TrainError

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

MASTERS = "master_weights.safetensors"
HALF = (torch.bfloat16, torch.float16)
FLOAT16_SCALE = 2.0**14
"""What the gradients of a float16 model are multiplied by on their way, so that small ones are no zeros."""


class MasterWeights:
    """A float32 copy of each trainable parameter in bfloat16 or float16; one in float32 is its own master.

    Gradients are added up here, in float32, as backward gives them; the optimizer steps here; `write_back` rounds the
    result into the model. A step smaller than the model's rounding thus adds up with the next instead of being lost.
    `scale` is the factor by which gradients arrive too large.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], scale: float = 1.0) -> None:
        self.scale = scale
        self._named = dict(parameters)
        self._masters = {
            name: torch.nn.Parameter(one.detach().to(torch.float32), requires_grad=True)
            for name, one in parameters.items()
        }
        self._handles: list[Any] = [
            one.register_post_accumulate_grad_hook(self._moved_to(self._masters[name]))  # type: ignore[no-untyped-call]
            for name, one in parameters.items()
        ]

    def _moved_to(self, master: torch.nn.Parameter) -> Any:
        def move(parameter: torch.Tensor) -> None:
            if parameter.grad is None:
                return
            gradient = parameter.grad.to(torch.float32)
            if self.scale != 1.0:
                gradient = gradient / self.scale
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

        return move

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The masters."""
        return iter(self._masters.values())

    def into(self, optimizer: torch.optim.Optimizer) -> None:
        """Puts the masters into the optimizer, which has not stepped yet, in the parameters' place."""
        place = {id(self._named[name]): master for name, master in self._masters.items()}
        for group in optimizer.param_groups:
            group["params"] = [place.get(id(one), one) for one in group["params"]]
        optimizer.register_step_post_hook(lambda *_: self.write_back())

    @torch.no_grad()
    def write_back(self) -> None:
        """Rounds the masters into the model; their gradients are used up."""
        for name, master in self._masters.items():
            self._named[name].copy_(master)
            master.grad = None

    def drop_infinite(self) -> bool:
        """Whether a gradient was not finite: all are then dropped, and the next ones come at half the scale."""
        found = [one.grad for one in self.parameters() if one.grad is not None]
        if all(bool(torch.isfinite(one).all()) for one in found):
            return False
        for one in self.parameters():
            one.grad = None
        self.scale /= 2.0
        return True

    def release(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def save(self, folder: Path) -> None:
        """Write the masters into a checkpoint's folder: the model's own weights are their rounding."""
        save_file({name: one.detach() for name, one in self._masters.items()}, folder / MASTERS)

    def load(self, folder: Path) -> None:
        """Take up the masters of a checkpoint. Raises TrainError where they are not this model's."""
        path = folder / MASTERS
        found = load_file(path) if path.exists() else {}
        if found.keys() != self._masters.keys():
            raise TrainError(
                f"{str(path)!r} holds the master weights of {len(found)} parameters, this model has"
                f" {len(self._masters)}; go on with the model that the checkpoint is of, or train anew"
            )
        with torch.no_grad():
            for name, value in found.items():
                self._masters[name].copy_(value)
        self.write_back()


class MasterWeightsMixin(Trainer):
    """A transformers Trainer whose optimizer steps on master weights where what is trained is in bfloat16 or float16,
    as a whole or in part, and where gradients pass through a base in float16 on their way to a float32 adapter: they
    are scaled there too.

    A model in float32, or with adapters in float32 over another frozen base, is trained as ever: `masters` is None.
    """

    masters: MasterWeights | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; the model is without hooks of ours at the end, for whoever trains it next."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.masters is not None:
                self.masters.release()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        trained: Any = self.model if model is None else model
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        parameters = {name: one for name, one in trained.named_parameters() if one.requires_grad}
        dtypes = {one.dtype for one in parameters.values()}
        # A frozen base in float16 counts; where accelerate has a loss scaler (fp16=True), that scales.
        scaler = getattr(self.accelerator, "scaler", None)
        float16 = scaler is None and any(one.dtype == torch.float16 for one in trained.parameters())
        if fresh and (float16 or not dtypes.isdisjoint(HALF)):
            # Of all of them: what a model holds in float32 is scaled, clipped and shared out with the rest.
            self.masters = MasterWeights(parameters, FLOAT16_SCALE if float16 else 1.0)
            self.masters.into(optimizer)
        return optimizer

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        computed = super().compute_loss(*args, **kwargs)
        loss = computed[0] if isinstance(computed, tuple) else computed
        if self.masters is not None and self.masters.scale != 1.0 and loss.requires_grad:
            scale = self.masters.scale
            loss.register_hook(lambda gradient: gradient * scale)
        return computed

    def _drop_infinite(self) -> None:
        """Drops gradients that did not come through the scaling. Raises TrainError where none is small enough."""
        masters = self.masters
        if masters is not None and masters.scale != 1.0 and masters.drop_infinite() and masters.scale < 1.0:
            raise TrainError(
                "the gradients of this float16 model are not finite at any scale; load it in float32 or bfloat16"
            )

    def _clip_grad_norm(self, model: Any) -> Any:
        self._drop_infinite()
        return super()._clip_grad_norm(model if self.masters is None else self.masters)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:  # nothing was clipped
            self._drop_infinite()
        return super()._get_grad_norm(model if self.masters is None else self.masters, grad_norm)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.masters is not None and self.args.should_save:
            self.masters.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.masters is not None and checkpoint is not None:
            self.masters.load(Path(checkpoint))
