"""Callbacks of TRL's trainers: the figures of each optimizer step for whoever shows progress, and whole checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from cm2_agent.types.protocols import Progress

from .checkpoints import State, complete

if TYPE_CHECKING:
    from .trl_trainer import StoredGRPOTrainer


class StepFigures(TrainerCallback):
    """Closes the figures of each optimizer step and reports them to `on_step`."""

    def __init__(self, trainer: StoredGRPOTrainer, on_step: Progress | None) -> None:
        self._trainer, self._on_step = trainer, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = self._trainer.finish_step()
        if self._on_step is not None:
            self._on_step(state.global_step, state.max_steps, metrics)


class ProgressCallback(TrainerCallback):
    """Calls `progress(step, total, metrics)` for every optimizer step that a trainer logs."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._progress is not None and logs and "loss" in logs:
            self._progress(state.global_step, state.max_steps, dict(logs))


class Checkpoints(TrainerCallback):
    """Makes TRL's checkpoints whole: `check` raises before one is written of a policy that went astray, `state` gives
    what of ours goes into it, and `limit` are left at most.
    """

    def __init__(
        self, *, check: Callable[[], None], state: Callable[[], State] = State, limit: int | None = None
    ) -> None:
        self._check, self._state, self._limit = check, state, limit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self._check()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self._check()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._state(), self._limit)


class PassEnds(TrainerCallback):
    """Logs or saves where a pass over the rollouts ends: TRL's own epochs are those of its nominal prompts."""

    def __init__(self, ends: Collection[int], *, log: bool, save: bool) -> None:
        self._ends, self._log, self._save = ends, log, save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self._ends:
            control.should_log = control.should_log or self._log
            control.should_save = control.should_save or self._save
