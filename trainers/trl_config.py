"""The TRL configurations of GRPO, SFT and DPO: our quiet defaults, the caller's `args` over them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm2_agent.errors import TrainError

from .checkpoints import run_folder

if TYPE_CHECKING:
    from .grpo import GRPO

QUIET: Mapping[str, Any] = {
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "weight_decay": 0.0,
}
"""Nothing is logged, saved or evaluated on the way unless asked for: for a small model that would cost more than the
step.
"""

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo")
"""TRL's kinds of loss; it finds out about another at the first step."""

LEARNING_RATES: Mapping[str, tuple[float, float]] = {
    "grpo": (3e-6, 3e-5),
    "sft": (2e-5, 2e-4),
    "dpo": (1e-6, 1e-5),
}
"""The default learning rate of all weights, and that of an adapter. The best rate of LoRA was found to be ten times
that of full training, whatever the rank, in imitation and in RL (Schulman et al., LoRA Without Regret, 2025); TRL's
documentation gives the same.
"""

EPSILON_HIGH: Mapping[str, float] = {"cispo": 5.0}
"""`epsilon_high` where it is no clip around 1: CISPO bounds the ratio itself by it, at 5.0 in ScaleRL
(arXiv 2510.13786).
"""

UNSET_FOLDER = "trainer_output"
"""TRL's `output_dir` where none was given."""


def config(
    kind: type[Any],
    args: Any,
    defaults: Mapping[str, Any],
    folder: Path,
    asked: Mapping[str, Any],
    *,
    keeps: Path | None = None,
) -> Any:
    """The TRL config: a given one copied and otherwise untouched, or `args` (a dict) over `asked` over `defaults` over
    QUIET.

    Args:
        kind: TRL's class.
        args: what the caller gave.
        defaults: ours for this algorithm.
        folder: `output_dir` of a run that leaves nothing there.
        asked: the trainer's own keywords, None where the caller left them out.
        keeps: `output_dir` of a run that was asked for checkpoints, trackers or completions, unless `args` has one.

    Raises:
        TrainError: an unknown name, a value TRL refuses, a setting that is asked for twice.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if isinstance(args, kind):
        if given:
            raise TrainError(
                f"{', '.join(sorted(given))} and a {kind.__name__} were both given; with a {kind.__name__} it alone"
                " decides: set them there"
            )
        return _placed(copy.copy(args), folder, keeps)
    if args is not None and not isinstance(args, Mapping):
        raise TrainError(
            f"args is a {type(args).__name__}; expected a {kind.__name__}, a dict of its settings, or nothing"
        )
    twice = sorted(set(given) & set(args or {}))
    if twice:
        raise TrainError(f"{', '.join(twice)}: given both as a keyword and in args; give each once")
    _require_one_length({**given, **(args or {})})
    quiet = dict(QUIET)
    # On by default in TRL, under a name that has changed.
    if not {"activation_checkpointing", "gradient_checkpointing"} & set(args or {}):
        known = {spec.name for spec in fields(kind)}
        quiet["activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"] = False
    with refusals(kind.__name__):
        settings = {**quiet, **defaults, **_implied(args or {}), **given, "output_dir": UNSET_FOLDER, **(args or {})}
        made = kind(**settings)
    rate = made.learning_rate
    if not (isinstance(rate, int | float) and 0 <= rate < 1e38):
        raise TrainError(f"learning_rate {rate!r}; expected a number of 0 or more, for example 1e-5")
    for spec in fields(kind):
        value, usual = getattr(made, spec.name), defaults.get(spec.name, spec.default)
        if isinstance(value, str) and isinstance(usual, int | float) and not isinstance(usual, bool):
            raise TrainError(f"{spec.name} {value!r}; expected a number, for example {usual}")
    return _placed(made, folder, keeps)


def check_counts(**counts: int | None) -> None:
    """Raises TrainError where both `steps` and `epochs` are given, or a number that was given is less than 1."""
    steps, epochs = counts.get("steps"), counts.get("epochs")
    if steps is not None and epochs is not None:
        raise TrainError(f"steps {steps} and epochs {epochs} were both given; give one of them")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise TrainError(f"{name} {count}; expected at least 1")


def learning_rate(algorithm: str, *, adapter: bool) -> float:
    """The default of an algorithm, for a model as a whole or for an adapter over one."""
    return LEARNING_RATES[algorithm][adapter]


def given_in(args: Any, field: str) -> Any:
    """The value of a field in a trainer's `args`, None where it was not given there: a TRL config gives what differs
    from TRL's default.
    """
    if isinstance(args, Mapping):
        return args.get(field)
    usual = next((one.default for one in fields(args) if one.name == field), None) if is_dataclass(args) else None
    value = getattr(args, field, None)
    return None if value == usual else value


def one_setting(keyword: str, value: Any, args: Any, *, default: Any = None, field: str | None = None) -> Any:
    """The value of a keyword that is a field of the TRL config too (`field`, by default of the same name). Raises
    TrainError where the two were given and differ.
    """
    field = field or keyword
    given = given_in(args, field)
    if given is None or given == value:
        return value
    if value != default:
        raise TrainError(f"{keyword} {value} and args with {field} {given} were given; give one of them")
    return given


def _require_one_length(given: Mapping[str, Any]) -> None:
    """Raises TrainError where both steps and passes were asked for: TRL would take the steps alone."""
    steps, passes = given.get("max_steps"), given.get("num_train_epochs")
    if passes is not None and isinstance(steps, int) and steps > 0:
        raise TrainError(
            f"{steps} optimizer steps (steps, max_steps) and {passes} passes (epochs, num_train_epochs) were given;"
            " give one of the two"
        )


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """What TRL refuses, as a TrainError that says so."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, ImportError, NotImplementedError) as error:
        raise TrainError(f"{name} refused its settings: {error}. See TRL's {name} for the names and values.") from error


def writes(made: Any) -> bool:
    """Whether a run of this config leaves checkpoints, completions or a tracker's files in `output_dir`."""
    strategy = getattr(made.save_strategy, "value", made.save_strategy)
    return strategy != "no" or bool(made.report_to) or bool(getattr(made, "log_completions", False))


def _placed(made: Any, folder: Path, keeps: Path | None) -> Any:
    if made.output_dir == UNSET_FOLDER:
        made.output_dir = str(keeps if keeps is not None and writes(made) else folder)
    return made


def _implied(args: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from what was asked for: to report is to log, and a number of steps is a strategy."""
    implied: dict[str, Any] = {}
    reported = args.get("report_to") not in (None, "none", [], ["none"])
    if reported or any(args.get(name) for name in ("log_completions", "logging_steps", "logging_first_step")):
        implied |= {"logging_strategy": "steps", "logging_steps": 1}
    if args.get("save_steps"):
        implied["save_strategy"] = "steps"
    return implied


def grpo_config(grpo: GRPO, temperature: float, folder: Path, *, adapter: bool = False) -> Any:
    """The GRPOConfig of a run on rollouts of this temperature; `adapter` says whether it trains one. `max_steps` is 0
    or less where the number of steps follows from the data.
    """
    from trl import GRPOConfig

    mapping = grpo.args if isinstance(grpo.args, Mapping) else {}
    # Ours to do: TRL would refuse them beside our nominal prompts, or do them to a model that is not there.
    args = {name: value for name, value in mapping.items() if name not in ("num_generations", "scale_rewards")}
    parts = int(mapping.get("steps_per_generation") or mapping.get("gradient_accumulation_steps") or 1)
    # TRL counts prompts by it, at least 2 of them; how many rows there are we decide.
    rows = args.pop("per_device_train_batch_size", None)
    if rows is not None and not (isinstance(rows, int) and rows >= 1):
        raise TrainError(
            f"per_device_train_batch_size {rows!r}; expected 1 or more: the most rows of one forward and backward pass"
            " (tokens_per_micro_batch bounds their tokens)"
        )
    nominal = rows if rows is not None and rows * parts > 1 else 2
    defaults = {
        "per_device_train_batch_size": nominal,
        "num_generations": nominal * parts,
        "beta": 0.0,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": EPSILON_HIGH.get(str(mapping.get("loss_type")), 0.28),
        "temperature": temperature,
        "scale_rewards": "none",
        "shuffle_dataset": False,
        "seed": grpo.seed,
        "learning_rate": learning_rate("grpo", adapter=adapter),
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0,
        "num_train_epochs": 1,
        **({"delta": grpo.max_weight} if grpo.importance_weighting == "direct" else {}),
    }
    asked = {
        "learning_rate": grpo.learning_rate,
        "warmup_steps": grpo.warmup_steps,
        "max_steps": grpo.steps,
        "num_train_epochs": grpo.epochs,
    }
    made = config(GRPOConfig, args if mapping else grpo.args, defaults, folder, asked, keeps=run_folder(grpo.out))
    if rows is not None:
        made.per_device_train_batch_size = rows
    if made.loss_type not in LOSSES:
        raise TrainError(f"loss_type {made.loss_type!r}; expected one of {', '.join(LOSSES)}")
    if made.loss_type == "cispo" and not (made.epsilon_high is not None and made.epsilon_high >= 1):
        raise TrainError(
            f"loss_type 'cispo' bounds the ratio itself by epsilon_high, and that is {made.epsilon_high}; expected 1 or"
            f" more, for example {EPSILON_HIGH['cispo']}"
        )
    if made.temperature != temperature:
        raise TrainError(
            f"args say temperature {made.temperature}, the stored logprobs are of temperature {temperature}; set "
            f"temperature={temperature}: the ratio is only one of the same distribution"
        )
    if made.sync_ref_model and not made.beta:
        raise TrainError("sync_ref_model needs a KL term; set beta above 0, or leave sync_ref_model out")
    if grpo.importance_weighting == "direct":
        one_setting("max_weight", grpo.max_weight, grpo.args, default=2.0, field="delta")
    if grpo.importance_weighting == "direct" and made.delta is None:
        made.delta = grpo.max_weight
    return made
