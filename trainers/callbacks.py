"""Callbacks of TRL's trainers: the figures of each optimizer step for whoever shows progress, and whole checkpoints."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from cm2_agent.types.protocols import Progress

from .checkpoints import State, complete
from .processes import wait_for_all

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
    """Makes TRL's checkpoints whole.

    Args:
        check: raises before a checkpoint is written of a policy that went astray.
        state: what of ours goes into one.
        limit: how many are left at most.
        every: a checkpoint that is due earlier waits for a step that is a multiple of this, or for the last one.
    """

    def __init__(
        self,
        *,
        check: Callable[[], None],
        state: Callable[[], State] = State,
        limit: int | None = None,
        every: int = 1,
    ) -> None:
        self._check, self._state, self._limit, self._every = check, state, limit, every
        self._due = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._due = self._due or control.should_save
        control.should_save = self._due and (
            state.global_step % self._every == 0 or state.global_step >= state.max_steps
        )
        if control.should_save:
            self._due = False
            self._check()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self._check()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_all()  # each process writes its random state into the folder
        if state.is_world_process_zero:
            complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._state(), self._limit)


class PassEnds(TrainerCallback):
    """Counts passes over the rollouts, and logs or saves where one ends: TRL's own epochs are those of its nominal
    prompts. `ends` are the steps after which a pass ends, in order, the last one not before the run's end.
    """

    def __init__(self, ends: Sequence[int], *, log: bool, save: bool) -> None:
        self._ends, self._log, self._save = ends, log, save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        done = bisect_right(self._ends, step)
        begun = self._ends[done - 1] if done else 0
        rest = (step - begun) / (self._ends[done] - begun) if done < len(self._ends) else 0.0
        state.epoch = done + rest
        if step == begun:
            control.should_log = control.should_log or self._log
            control.should_save = control.should_save or self._save
