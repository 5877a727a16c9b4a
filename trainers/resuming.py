"""Training with checkpoints: a run that was killed goes on from its newest one when it is started again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from cm2_agent.errors import TrainError
from cm2_agent.types.protocols import Progress

from .callbacks import Checkpoints
from .checkpoints import State, open_run, read_state
from .divergence import require_finite_weights
from .policy import without_bars
from .run_identity import RunIdentity
from .trl_config import writes


def resume_point(config: Any, run: RunIdentity, *, overwrite: bool) -> Path | None:
    """The checkpoint from which a run of this TRL config goes on, None where it begins or keeps nothing; its folder is
    the run's from then on. Raises TrainError as `open_run` does.
    """
    if not writes(config):
        return None
    return open_run(Path(config.output_dir), run, overwrite=overwrite, resume=config.resume_from_checkpoint)


def train_resumably(
    trainer: Any,
    checkpoint: Path | None,
    *,
    progress: Progress | None = None,
    check: Callable[[], object] = lambda: None,
    state: Callable[[], State] = State,
    every: int = 1,
    go_on: Callable[[int, State], None] = lambda step, state: None,
) -> None:
    """Trains, from a checkpoint where there is one; the weights are finite at the end.

    Args:
        trainer: a transformers Trainer that has not trained yet.
        checkpoint: of this very run (`resume_point`).
        progress: of whoever watches the run, who learns from which step it goes on.
        check: raises where the policy as it is must not be saved; finite weights are checked anyway.
        state: what of ours goes into a checkpoint.
        every: checkpoints are written at multiples of so many steps alone, and at the end.
        go_on: called with the step of the checkpoint and its state before training goes on.

    Raises:
        TrainError: a checkpoint that cannot be read, and what `check` says.
    """
    config = trainer.args

    def sound() -> None:
        require_finite_weights(trainer.model, config.learning_rate)
        check()

    if config.save_strategy != "no":
        limit, config.save_total_limit = config.save_total_limit, None  # an old one goes when the new one is whole
        trainer.add_callback(Checkpoints(check=sound, state=state, limit=limit, every=every))
    with without_bars():
        if checkpoint is None:
            trainer.train()
        else:
            saved = _trainer_state(checkpoint)
            go_on(saved.global_step, read_state(checkpoint))
            if trainer.is_world_process_zero():
                _announce(progress, saved, checkpoint)
            if saved.global_step < saved.max_steps:
                trainer.train(resume_from_checkpoint=str(checkpoint))
            else:  # killed after the last step: TRL would take one more
                trainer._load_from_checkpoint(str(checkpoint))
                trainer.state = saved
    sound()


def _announce(progress: Progress | None, saved: TrainerState, checkpoint: Path) -> None:
    """Says from where the run goes on: to a `progress` that has a method `resumed`, else to the log."""
    resumed = getattr(progress, "resumed", None)
    if callable(resumed):
        resumed(saved.global_step, saved.max_steps, checkpoint)
    else:
        logging.getLogger("cm2_agent").warning(
            "going on from step %d of %d (%s)", saved.global_step, saved.max_steps, checkpoint
        )


def _trainer_state(checkpoint: Path) -> TrainerState:
    try:
        return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError) as error:
        raise TrainError(
            f"checkpoint {str(checkpoint)!r}: {TRAINER_STATE_NAME} cannot be read ({error}); remove that checkpoint"
        ) from error
