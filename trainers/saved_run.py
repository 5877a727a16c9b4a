"""How many steps a run of GRPO takes, and what of it goes into a checkpoint beside TRL's own state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from cm2_agent.errors import TrainError

from .batches import SampleBatches
from .callbacks import PassEnds
from .checkpoints import State

if TYPE_CHECKING:
    from .grpo_run import Prepared
    from .trl_trainer import StoredGRPOTrainer

_PROX = "prox"


def plan(trainer: StoredGRPOTrainer, pass_sizes: Callable[[], Iterator[int]]) -> int:
    """Sets the number of optimizer steps where the config has none: so many that `num_train_epochs` passes use each
    rollout exactly as often. `pass_sizes` gives the number of batches of each pass. Returns how many steps share a
    batch.
    """
    config = trainer.settings
    steps = int(config.steps_per_generation * config.num_iterations)
    sizes = pass_sizes()
    if config.max_steps <= 0:
        whole, part = int(config.num_train_epochs), config.num_train_epochs % 1
        ends = [0, *(size * steps for size in accumulate(next(sizes) for _ in range(whole + math.ceil(part))))]
        config.max_steps = max(1, ends[whole] + (math.ceil(part * (ends[-1] - ends[whole])) if part else 0))
        sizes = pass_sizes()
    ends = []
    for size in accumulate(sizes):
        ends.append(size * steps)
        if ends[-1] >= config.max_steps:
            break
    by_pass = {name: getattr(config, name) == "epoch" for name in ("logging_strategy", "save_strategy")}
    if by_pass["logging_strategy"]:
        config.logging_strategy, config.logging_steps = type(config.logging_strategy)("steps"), config.max_steps
    if by_pass["save_strategy"]:
        config.save_strategy, config.save_steps = type(config.save_strategy)("steps"), config.max_steps
    if config.logging_strategy != "no" or config.save_strategy != "no":
        trainer.add_callback(PassEnds(ends, log=by_pass["logging_strategy"], save=by_pass["save_strategy"]))
    return steps


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The part of a run that TRL does not know: the figures of the steps, which batch comes next, π_prox of the load
    that is being used, and a reference that follows the policy.
    """

    prepared: Prepared
    batches: SampleBatches
    steps_a_batch: int

    def state(self) -> State:
        """What goes into a checkpoint."""
        tensors: dict[str, torch.Tensor] = {}
        if (prox := self.batches.prox) is not None:
            tensors[_PROX] = torch.from_numpy(prox)
        if self.prepared.reference is not None:
            tensors |= self.prepared.reference.tensors
        return State(values={"history": list(self.prepared.trainer.history)}, tensors=tensors)

    def go_on(self, step: int, state: State) -> None:
        """Go on after so many steps. Raises TrainError where the state is not one of this run."""
        history: Any = state.values.get("history")
        prox = state.tensors.get(_PROX)
        try:
            if not isinstance(history, list) or len(history) != step:
                raise ValueError(f"figures of {step} steps were expected")
            self.prepared.trainer.history[:] = [{name: float(one[name]) for name in one} for one in history]
            drawn = -(-step // self.steps_a_batch)
            self.prepared.trainer.go_on(step, drawn)
            self.batches.go_on(drawn, None if prox is None else prox.numpy())
            if self.prepared.reference is not None:
                self.prepared.reference.load(state.tensors)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise TrainError(
                f"the checkpoint's own state is not one of this run ({error}); remove that checkpoint"
            ) from error
