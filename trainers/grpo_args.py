"""The `args` of GRPO, checked against the tables of its fields (grpo_fields.py), and what of them is ours to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cm2_agent.errors import TrainError

from .grpo_fields import OURS, PASSED, REFUSED


@dataclass(frozen=True, kw_only=True)
class OwnFields:
    """What the fields of `args` mean for CM2 itself: None where they were not given."""

    norm: str | None = None
    num_generations: int | None = None
    mask_truncated: bool = False
    log_completions: bool = False

    def one_norm(self, norm: str, credits: object) -> str:
        """The norm of `norm` and `scale_rewards`. Raises TrainError where they, or `credits`, say different things."""
        if self.norm is None or self.norm == norm:
            return norm
        if norm != "none" or credits is not None:
            other = f"norm {norm!r}" if norm != "none" else "credits, which are advantages already,"
            raise TrainError(f"scale_rewards means norm {self.norm!r}, and {other} was given too; give one of them")
        return self.norm


def given_fields(args: Any) -> dict[str, Any]:
    """The fields that were given: those of a dict, or those of a GRPOConfig that differ from TRL's default."""
    if args is None:
        return {}
    if isinstance(args, Mapping):
        return dict(args)
    if not any(one.__name__ == "GRPOConfig" for one in type(args).__mro__):
        raise TrainError(f"args is a {type(args).__name__}; expected a GRPOConfig, a dict of its settings, or nothing")
    default = _defaults()
    # Of the number of prompts TRL makes one from the other two.
    known = [spec.name for spec in fields(args) if spec.name != "generation_batch_size"]
    return {name: getattr(args, name) for name in known if getattr(args, name) != getattr(default, name, None)}


def check_fields(args: Any) -> OwnFields:
    """What `args` asks of CM2. Raises TrainError on a field that GRPOConfig does not have, that means nothing for
    stored rollouts, or whose value cannot be meant: with its name, what was given and what to do.
    """
    given = given_fields(args)
    for name in given:
        if name not in PASSED and name not in OURS and name not in REFUSED:
            close = difflib.get_close_matches(name, [*PASSED, *OURS], n=2)
            raise TrainError(
                f"GRPOConfig refused its settings: {name} {given[name]!r} was given, and it has no such field"
                f"{'; did you mean ' + ' or '.join(close) if close else ''}. docs/reference/grpo-fields.md lists all"
            )
    refused = [name for name in given if name in REFUSED]
    if refused:
        default = _defaults()
        for name in refused:
            if given[name] != getattr(default, name, None) and (given[name] or getattr(default, name, None)):
                raise TrainError(f"{name} {given[name]!r} was given and cannot be meant: {REFUSED[name]}. Leave it out")
    for name in ("save_strategy", "logging_strategy"):
        value = getattr(given.get(name), "value", given.get(name))
        if value not in (None, "no", "steps", "epoch"):
            raise TrainError(f"{name} {value!r}; expected 'steps', 'epoch' (the end of each pass), or 'no'")
    scale = given.get("scale_rewards")
    norms = {"group": "std", True: "std", "none": "none", False: "none", None: None}
    if scale not in norms:
        raise TrainError(
            f"scale_rewards {scale!r}; expected 'group' (norm='std') or 'none': advantages are those of a group, and no"
            " other rollouts' rewards may scale them"
        )
    number = given.get("num_generations")
    return OwnFields(
        norm=norms[scale],
        num_generations=None if number is None else int(number),
        mask_truncated=bool(given.get("mask_truncated_completions")),
        log_completions=bool(given.get("log_completions")),
    )


def _defaults() -> Any:
    """A GRPOConfig with nothing set, on whatever machine."""
    from trl import GRPOConfig

    return GRPOConfig(bf16=False, activation_checkpointing=True)
