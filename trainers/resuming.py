"""Training with checkpoints: a run that was killed goes on from its newest one when it is started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from .callbacks import Checkpoints
from .checkpoints import State, open_run, read_state
from .divergence import require_finite_weights
from .run_identity import RunIdentity
from .trl_config import writes


def train_resumably(
    trainer: Any,
    run: RunIdentity,
    *,
    overwrite: bool,
    check: Callable[[], object] = lambda: None,
    state: Callable[[], State] = State,
    go_on: Callable[[int, State], None] = lambda step, state: None,
) -> None:
    """Trains, from the newest whole checkpoint of this very run where there is one; the weights are finite at the end.

    Args:
        trainer: a transformers Trainer that has not trained yet.
        run: which run it is.
        overwrite: whether another run's checkpoints are replaced.
        check: raises where the policy as it is must not be saved; finite weights are checked anyway.
        state: what of ours goes into a checkpoint.
        go_on: called with the step of the checkpoint and its state before training goes on.

    Raises:
        TrainError: another run's checkpoints without `overwrite`, a checkpoint that cannot be read, and what `check`
            says.
    """
    config = trainer.args

    def sound() -> None:
        require_finite_weights(trainer.model, config.learning_rate)
        check()

    checkpoint: Path | None = None
    if writes(config):
        resume = config.resume_from_checkpoint
        checkpoint = open_run(Path(config.output_dir), run, overwrite=overwrite, resume=resume)
        limit, config.save_total_limit = config.save_total_limit, None  # an old one goes when the new one is whole
        trainer.add_callback(Checkpoints(check=sound, state=state, limit=limit))
    if checkpoint is None:
        trainer.train()
    else:
        saved = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        go_on(saved.global_step, read_state(checkpoint))
        if saved.global_step < saved.max_steps:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        else:  # killed after the last step: TRL would take one more
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = saved
    sound()
