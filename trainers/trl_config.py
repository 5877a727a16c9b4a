"""What TRL is told: our quiet defaults, the caller's `args` over them. Apart since GRPO and SFT share it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cm2_agent.errors import TrainError

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
