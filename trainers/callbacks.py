"""Callbacks of TRL's trainers: the figures of each optimizer step, handed to whoever shows progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from cm2_agent.types.protocols import Progress

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
