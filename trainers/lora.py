"""LoRA for the trainers: `peft_config` in its forms, and a new adapter over a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cm2_agent.errors import ModelError, TrainError, require_extra
from cm2_agent.models.adapters import is_peft, require_lora

SHORT = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "rslora": "use_rslora",
}
"""The words of `--lora`, and what LoraConfig calls them."""


def parse_lora(text: str) -> dict[str, Any]:
    """`r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj` as keywords of a LoraConfig. Raises TrainError.

    >>> from cm2_agent.trainers.lora import parse_lora
    >>> parse_lora("r=16,alpha=32,targets=q_proj+v_proj")
    {'r': 16, 'lora_alpha': 32, 'target_modules': ['q_proj', 'v_proj']}
    """
    found: dict[str, Any] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, equals, value = (one.strip() for one in part.partition("="))
        if name not in SHORT or not equals or not value or SHORT[name] in found:
            raise TrainError(
                f"--lora {text!r}: {part!r} cannot be read; expected {', '.join(f'{one}=…' for one in SHORT)}, each at"
                " most once, for example: --lora r=16,alpha=32,targets=q_proj+v_proj"
            )
        try:
            found[SHORT[name]] = _value(name, value)
        except ValueError as error:
            raise TrainError(f"--lora {text!r}: {name} {value!r}; expected {error}") from error
    return found


def _value(name: str, value: str) -> Any:
    if name == "targets":
        names = [one for one in value.split("+") if one]
        return names[0] if names == ["all-linear"] else names
    if name == "rslora":
        if value not in ("true", "false"):
            raise ValueError("true or false")
        return value == "true"
    try:
        return float(value) if name == "dropout" else int(value)
    except ValueError:
        raise ValueError("a number" if name == "dropout" else "a whole number") from None


def lora_config(given: Any) -> Any:
    """A LoraConfig of `peft_config`: one that was given, or the keywords of one; by default all linear layers of the
    model get an adapter. Raises TrainError.
    """
    require_extra("train", "LoRA adapters", "peft")
    from peft import LoraConfig, PeftConfig

    if isinstance(given, Mapping):
        settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **given}
        try:
            given = LoraConfig(**settings)
        except (TypeError, ValueError) as error:
            raise TrainError(
                f"peft_config {dict(settings)!r} was refused: {error}. Expected the keywords of peft's LoraConfig: r,"
                " lora_alpha, lora_dropout, target_modules, …"
            ) from error
    if not isinstance(given, PeftConfig):
        raise TrainError(
            f"peft_config is a {type(given).__name__}; expected a peft.LoraConfig, or a dict of its keywords"
        )
    try:
        require_lora(given)
    except ModelError as error:
        raise TrainError(f"peft_config is {error}") from error
    for name, least in (("r", 1), ("lora_alpha", None), ("lora_dropout", 0)):
        value = getattr(given, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or (least is not None and value < least):
            raise TrainError(f"peft_config has {name} {value!r}; expected a number{f' from {least}' if least else ''}")
    return given


def add_adapter(model: Any, given: Any, *, seed: int) -> Any:
    """A PeftModel: a new adapter in float32 over a model, whose own weights are frozen; its first values follow from
    `seed`. Raises TrainError.
    """
    import copy

    import torch
    from peft import get_peft_model

    settings = copy.deepcopy(lora_config(given))
    if is_peft(model):
        raise TrainError(
            "peft_config was given, and the model has an adapter already; leave peft_config out to train that one on,"
            " or merge it first: cm2 policy merge ADAPTER OUT"
        )
    if settings.init_lora_weights not in (True, False, "gaussian", "orthogonal"):
        raise TrainError(
            f"init_lora_weights {settings.init_lora_weights!r} changes the model below the adapter; expected True,"
            " False, 'gaussian' or 'orthogonal'"
        )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(model, settings)
    except (ValueError, TypeError) as error:
        raise TrainError(f"peft_config does not fit the model: {error}") from error
