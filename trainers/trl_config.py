"""The TRL configurations of GRPO and SFT: our quiet defaults, the caller's `args` over them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm2_agent.errors import TrainError

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


def config(kind: type[Any], args: Any, defaults: Mapping[str, Any], folder: Path, asked: Mapping[str, Any]) -> Any:
    """The TRL config: a given one copied and otherwise untouched, or `args` (a dict) over `asked` over `defaults` over
    QUIET.

    `asked` are the trainer's own keywords, None where the caller left them out. Raises TrainError on an unknown name,
    on a value TRL refuses, and where a setting is asked for twice.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if isinstance(args, kind):
        if given:
            raise TrainError(
                f"{', '.join(sorted(given))} and a {kind.__name__} were both given; with a {kind.__name__} it alone"
                " decides: set them there"
            )
        return copy.copy(args)
    if args is not None and not isinstance(args, Mapping):
        raise TrainError(
            f"args is a {type(args).__name__}; expected a {kind.__name__}, a dict of its settings, or nothing"
        )
    twice = sorted(set(given) & set(args or {}))
    if twice:
        raise TrainError(f"{', '.join(twice)}: given both as a keyword and in args; give each once")
    quiet = dict(QUIET)
    if not {"activation_checkpointing", "gradient_checkpointing"} & set(
        args or {}
    ):  # on by default in TRL; its name has changed
        known = {spec.name for spec in fields(kind)}
        quiet["activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"] = False
    try:
        return kind(**{**quiet, **defaults, **given, "output_dir": str(folder), **(args or {})})
    except (TypeError, ValueError) as error:
        raise TrainError(
            f"{kind.__name__} refused its settings: {error}. See TRL's {kind.__name__} for the names and values."
        ) from error


def grpo_config(grpo: GRPO, temperature: float, folder: Path) -> Any:
    """The GRPOConfig of a run on rollouts of this temperature. `max_steps` is 0 or less where the number of steps
    follows from the data.
    """
    from trl import GRPOConfig

    given = isinstance(grpo.args, GRPOConfig)
    mapping = grpo.args if isinstance(grpo.args, Mapping) else {}
    parts = int(mapping.get("steps_per_generation") or mapping.get("gradient_accumulation_steps") or 1)
    # TRL counts prompts by it; how many rows there are we decide.
    nominal = int(mapping.get("per_device_train_batch_size") or 2)
    nominal = nominal if nominal * parts > 1 else 2
    defaults = {
        "per_device_train_batch_size": nominal,
        "num_generations": nominal * parts,
        "beta": 0.0,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "temperature": temperature,
        "scale_rewards": "none",
        "shuffle_dataset": False,
        "seed": grpo.seed,
        "learning_rate": 3e-6,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0,
        "num_train_epochs": grpo.epochs or 1,
        **({"delta": grpo.max_weight} if grpo.importance_weighting == "direct" else {}),
    }
    asked = {"learning_rate": grpo.learning_rate, "warmup_steps": grpo.warmup_steps, "max_steps": grpo.steps}
    made = config(GRPOConfig, grpo.args, defaults, folder, {**asked, "epochs": grpo.epochs} if given else asked)
    if made.temperature != temperature:
        raise TrainError(
            f"args say temperature {made.temperature}, the stored logprobs are of temperature {temperature}; set "
            f"temperature={temperature}: the ratio is only one of the same distribution"
        )
    if made.use_vllm or made.world_size > 1:
        raise TrainError(
            "stored rollouts are trained on by one process and without vLLM; expected use_vllm=False and one process"
        )
    if grpo.importance_weighting == "direct" and made.delta is None:
        made.delta = grpo.max_weight
    return made
