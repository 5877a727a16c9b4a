"""What SFT and DPO are besides their loss: a trainer that goes from stored dialogues, by ids or by words, to the folder
of a policy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from cm2_agent.errors import TrainError, require_extra
from cm2_agent.models.adapters import is_peft
from cm2_agent.models.stop_tokens import configured_stops
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .checkpoints import run_folder
from .imitation import RowMaker
from .launch import warn_unsharded
from .model_limits import ModelLimits
from .off_policy import some
from .output_folder import check_out, check_run, save_report, saving, whole_folder
from .policy import Policy, loaded_policy, save_policy
from .rows import Row
from .run_identity import RunIdentity, identify, rows_hash
from .stop_tokens import add_stops
from .trl_config import config, given_in, learning_rate, one_setting, refusals

require_extra("train", "Trainers", "torch", "transformers", "trl", "accelerate", "datasets")


class Material(Protocol):
    """What was read of the dialogues: all rows that are trained on, in order, and the account of what was left out."""

    @property
    def rows(self) -> Sequence[Row]: ...

    @property
    def report(self) -> dict[str, JSON]: ...


M = TypeVar("M", bound=Material)


def checked_fall(max_fall: float | None) -> float | None:
    """The limit of collapse that was given. Raises TrainError where it is none."""
    if max_fall is None or (isinstance(max_fall, int | float) and not isinstance(max_fall, bool) and max_fall >= 0):
        return max_fall
    raise TrainError(
        f"max_fall {max_fall!r}; expected nats a token, 0 or more, for example 2, or math.inf (Infinity) for no limit"
    )


class DialogueTrainer(ABC, Generic[M]):
    """Trains on rows of dialogues with a trainer of TRL's. Public attributes are settings of the run's identity; what
    differs between the algorithms are the methods below `_train`.
    """

    _algorithm: ClassVar[Literal["sft", "dpo"]]
    """Its name in the run's identity; in capitals, TRL's: SFTTrainer, SFTConfig."""

    def __init__(
        self,
        model: Any,
        out: str | Path,
        *,
        tokenizer: Any,
        peft_config: Any,
        retokenise: bool,
        agent: str | None,
        steps: int | None,
        epochs: int | None,
        learning_rate: float | None,
        warmup_steps: int | None,
        seed: int,
        max_length: int | None,
        max_fall: float | None,
        overwrite: bool,
        args: Any,
    ) -> None:
        self.model, self.tokenizer, self.out = model, tokenizer, Path(out)
        self.peft_config = peft_config
        self.retokenise, self.agent = retokenise, agent
        self.steps, self.epochs = steps, epochs
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.seed = one_setting("seed", seed, args, default=0)
        self.max_length = one_setting("max_length", max_length, args)
        self._max_fall = checked_fall(max_fall)
        self.overwrite, self.args = overwrite, args
        self.report: dict[str, JSON] = {}

    def _train(self, dialogues: Iterable[Any], progress: Progress | None) -> Path:
        """Train and return `out`. A run that is refused or interrupted leaves `out` as it was."""
        check_out(self.out)
        name = self._algorithm.upper()
        from .processes import require_one  # imports torch

        require_one(name)
        warn_unsharded()
        with loaded_policy(self.model, self.tokenizer, peft_config=self.peft_config, seed=self.seed) as policy:
            limits = ModelLimits(policy.model)
            make = RowMaker(
                policy.tokenizer,
                vocabulary=limits.vocabulary,
                stops=configured_stops(policy.model),
                words=self.retokenise,
                agent=self.agent,
                max_length=min((one for one in (self.max_length, limits.context) if one is not None), default=None),
            )
            material = self._read(dialogues, make)
            with whole_folder(self.out) as folder:
                from .trl_trainer import config_restored

                with config_restored(policy.model):
                    trainer, run = self._fit(policy, material, folder, progress)
                stops = add_stops(policy.model, policy.tokenizer, make.ends)
                self.report = self._report(material, policy, trainer, stops)
                with saving(self.out):
                    save_policy(folder, policy)
                    save_report(folder, self.report, run)
        return self.out

    def _fit(self, policy: Policy, material: M, folder: Path, progress: Progress | None) -> tuple[Any, RunIdentity]:
        import trl
        from transformers import PrinterCallback

        from .collapse import mean_logprob, require_sound
        from .resuming import resume_point, train_resumably

        defaults = {
            "learning_rate": learning_rate(self._algorithm, adapter=is_peft(policy.model)),
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0,
            "num_train_epochs": 1,
            "seed": self.seed,
            "max_length": None,
            "logging_strategy": "steps",
            "logging_steps": 1,
            "per_device_train_batch_size": self._micro_batch(),
            **self._defaults(),
        }
        asked = {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "max_steps": self.steps,
            "num_train_epochs": self.epochs,
            **self._asked(),
        }
        name = self._algorithm.upper()
        kind = getattr(trl, f"{name}Config")
        made = config(kind, self.args, defaults, folder.parent / "trl", asked, keeps=run_folder(self.out))
        self._settle(made)
        rows = rows_hash(material.rows)
        run = identify(self._algorithm, model=policy.version, rows=rows, config=made, trainer=self)
        check_run(self.out, run, overwrite=self.overwrite)
        checkpoint = resume_point(made, run, overwrite=self.overwrite)
        with refusals(f"{name}Trainer"):
            trainer = self._trainer(policy, material, made, progress)
        trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is the command line's
        better, usual, what = self._better(material)
        limit = usual if self._max_fall is None else self._max_fall
        pad = policy.tokenizer.pad_token_id
        measure = partial(mean_logprob, trainer, some(better), policy.tokenizer.eos_token_id if pad is None else pad)
        before = measure()

        def check() -> None:
            more = ", or pass max_fall=… (--set max_fall=…): nats a token, math.inf (Infinity) for no limit"
            require_sound(before - measure(), limit, what=what, learning_rate=made.learning_rate, more=more)

        train_resumably(trainer, checkpoint, progress=progress, check=check)
        return trainer, run

    @abstractmethod
    def _read(self, dialogues: Iterable[Any], make: RowMaker) -> M:
        """What is trained on. Raises TrainError where nothing is left."""

    @abstractmethod
    def _rows_per_step(self) -> tuple[str, int]:
        """The keyword that says how many rows an optimizer step has, and its value."""

    def _micro_batch(self) -> int:
        """The rows that pass forward and backward at once: those of a step, or of a part of it where `args` ask for
        `gradient_accumulation_steps`.
        """
        (name, number), field = self._rows_per_step(), "per_device_train_batch_size"
        number = one_setting(name, number, self.args, default=16, field=field)
        if given_in(self.args, field) is not None:  # and a step is what TRL makes of it
            return number
        parts = given_in(self.args, "gradient_accumulation_steps") or 1
        if number % parts:
            raise TrainError(f"gradient_accumulation_steps {parts} does not divide {name} {number}; give one that does")
        return number // int(parts)

    def _defaults(self) -> Mapping[str, Any]:
        """Defaults of the TRL config besides the common ones."""
        return {}

    def _asked(self) -> Mapping[str, Any]:
        """Keywords of this algorithm that are fields of the TRL config, None where they were left out."""
        return {}

    @abstractmethod
    def _settle(self, made: Any) -> None:
        """Sets what the TRL config must say, whoever made it. Raises TrainError where it says what cannot be meant."""

    @abstractmethod
    def _trainer(self, policy: Policy, material: M, made: Any, progress: Progress | None) -> Any:
        """TRL's trainer, which has not trained yet."""

    @abstractmethod
    def _better(self, material: M) -> tuple[Sequence[Row], float, str]:
        """What the policy learns to write, by how many nats a token it may become less likely, and its name."""

    @abstractmethod
    def _report(self, material: M, policy: Policy, trainer: Any, stops: Sequence[str]) -> dict[str, JSON]:
        """The report of a run that ended well."""

    def _outcome(self, policy: Policy, trainer: Any, stops: Sequence[str]) -> dict[str, JSON]:
        """The part of a report that all algorithms share."""
        from cm2_agent.models.local import fingerprint

        return {
            "policy": {"before": policy.version, "after": fingerprint(policy.model)},
            "stops_added": list(stops),
            "learning_rate": trainer.args.learning_rate,
            "steps": int(trainer.state.global_step),
            "seed": trainer.args.seed,
        }
